// cross_entropy_el2n on CUDA: the loss of every row and the norm of its gradient p - q from one read; the gradient.
#include "cuda/engine/logit_kernels.cuh"

namespace mbq::cuda {
namespace {

constexpr const char* kOp = "cross_entropy_el2n";

std::tuple<Tensor, Tensor, Tensor> cross_entropy_el2n_forward(const Tensor& logits, const Tensor& targets,
                                                              int64_t ignore_index, double smoothing) {
  check_logits(kOp, logits, targets);
  const Launch launch(kOp, logits);
  const Tensor x = make_contiguous(logits), classes = make_contiguous(targets);
  Tensor losses = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Float);
  Tensor norms = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Float);
  Tensor kept = torch::stable::new_empty(logits, {logits.size(0), 2}, ScalarType::Float);
  dispatch_logits(kOp, x, [&](auto storage) {
    using T = decltype(storage);
    LogitJob<T> job = logit_job<T>(x, classes, ignore_index, smoothing);
    job.loss = static_cast<float*>(losses.mutable_data_ptr());
    job.el2n = static_cast<float*>(norms.mutable_data_ptr());
    job.kept = static_cast<float*>(kept.mutable_data_ptr());
    launch_logit_rows(launch, logit_rows_kernel<T, true, kWarpLanes>, logit_rows_kernel<T, true, kThreads>, job);
  });
  return {losses, norms, kept};
}

Tensor cross_entropy_el2n_backward(const Tensor& grad, const Tensor& logits, const Tensor& targets, const Tensor& kept,
                                   int64_t ignore_index, double smoothing) {
  check_logits(kOp, logits, targets);
  check(grad.numel() == logits.size(0) && kept.numel() == 2 * logits.size(0) && same_device(grad, logits) &&
            same_device(kept, logits) && grad.scalar_type() == ScalarType::Float &&
            kept.scalar_type() == ScalarType::Float,
        kOp, ": the gradient must have one element a row, what was kept two, in float32");
  const Launch launch(kOp, logits);
  const Tensor x = make_contiguous(logits), classes = make_contiguous(targets);
  const Tensor grads = make_contiguous(grad), numbers = make_contiguous(kept);
  Tensor grad_logits = torch::stable::new_empty(logits, {logits.size(0), logits.size(1)});
  dispatch_logits(kOp, x, [&](auto storage) {
    using T = decltype(storage);
    LogitJob<T> job = logit_job<T>(x, classes, ignore_index, smoothing);
    job.kept = static_cast<float*>(const_cast<void*>(numbers.const_data_ptr()));
    job.grad = static_cast<const float*>(grads.const_data_ptr());
    job.grad_x = static_cast<T*>(grad_logits.mutable_data_ptr());
    launch_logit_rows(launch, logit_gradient_kernel<T, kWarpLanes>, logit_gradient_kernel<T, kThreads>, job);
  });
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) {
  m.impl("cross_entropy_el2n_forward", TORCH_BOX(&cross_entropy_el2n_forward));
  m.impl("cross_entropy_el2n_backward", TORCH_BOX(&cross_entropy_el2n_backward));
}

}  // namespace mbq::cuda
