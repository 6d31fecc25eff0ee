// el2n on CUDA: sqrt(sum_{j != t} p_j^2 + (sum_{j != t} p_j)^2) of every row (Paul et al., 2021, arXiv 2107.07075).
#include "cuda/engine/logit_kernels.cuh"

namespace mbq::cuda {
namespace {

Tensor el2n_forward(const Tensor& logits, const Tensor& targets, int64_t ignore_index) {
  check_logits("el2n", logits, targets);
  const Launch launch("el2n", logits);
  const Tensor x = make_contiguous(logits), classes = make_contiguous(targets);
  Tensor norms = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Float);
  dispatch_logits(launch.op, x, [&](auto storage) {
    using T = decltype(storage);
    LogitJob<T> job = logit_job<T>(x, classes, ignore_index, 0.0);
    job.el2n = static_cast<float*>(norms.mutable_data_ptr());
    launch_logit_rows(launch, logit_rows_kernel<T, false, kWarpLanes>, logit_rows_kernel<T, false, kThreads>, job);
  });
  return norms;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) { m.impl("el2n_forward", TORCH_BOX(&el2n_forward)); }

}  // namespace mbq::cuda
