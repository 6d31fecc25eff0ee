// sample_grad_norm_batch_norm on the CPU: sum over channels of (sum_p g x_hat)^2 + (sum_p g)^2 of every sample.
#include "cpu/sample_norms/position_sums.h"

namespace mbq {
namespace {

Tensor sample_grad_norm_batch_norm_forward(const Tensor& normalized, const Tensor& grad_outputs, bool weight,
                                           bool bias) {
  const int64_t channels = grad_outputs.size(1), positions = grad_outputs.size(2);
  const auto one = [&](const auto* x, const auto* g) {
    using W = wide_t<std::decay_t<decltype(*g)>>;
    alignas(64) W wide_x[kBlock], wide_g[kBlock];
    double norm = 0;
    for (int64_t c = 0; c < channels; ++c) {
      double with_x = 0, alone = 0;
      for (int64_t begin = 0; begin < positions; begin += kBlock) {
        const int64_t n = std::min(kBlock, positions - begin), at = c * positions + begin;
        const Ahead next_g{reinterpret_cast<const char*>(g + at + n), sizeof(*g)};
        const Ahead next_x{reinterpret_cast<const char*>(x + at + n), sizeof(*x)};
        run<AddChannel<W>>(load(g + at, wide_g, n), load(x + at, wide_x, n), n, next_g, next_x, &with_x, &alone);
      }
      norm += (weight ? with_x * with_x : 0.0) + (bias ? alone * alone : 0.0);
    }
    return norm;
  };
  return norms_of_samples("sample_grad_norm_batch_norm", normalized, grad_outputs, one);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("sample_grad_norm_batch_norm_forward", TORCH_BOX(&sample_grad_norm_batch_norm_forward));
}

}  // namespace mbq
