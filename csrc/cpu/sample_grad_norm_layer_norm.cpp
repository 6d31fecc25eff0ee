// sample_grad_norm_layer_norm on the CPU: || sum_p g x_hat ||^2 + || sum_p g ||^2 of every sample.
#include "cpu/sample_norms/position_sums.h"

namespace mbq {
namespace {

Tensor sample_grad_norm_layer_norm_forward(const Tensor& normalized, const Tensor& grad_outputs, bool weight,
                                           bool bias) {
  const int64_t positions = grad_outputs.size(1), channels = grad_outputs.size(2);
  const auto one = [&](const auto* x, const auto* g) {
    using W = wide_t<std::decay_t<decltype(*g)>>;
    alignas(64) W wide_x[kBlock], wide_g[kBlock];
    alignas(64) double with_x[kBlock], alone[kBlock];
    double norm = 0;
    for (int64_t begin = 0; begin < channels; begin += kBlock) {
      const int64_t n = std::min(kBlock, channels - begin);
      std::fill_n(with_x, n, 0.0), std::fill_n(alone, n, 0.0);
      for (int64_t p = 0; p < positions; ++p) {
        const int64_t at = p * channels + begin;
        run<AddPosition<W>>(load(g + at, wide_g, n), load(x + at, wide_x, n), n, with_x, alone);
      }
      for (int64_t i = 0; i < n; ++i)
        norm += (weight ? with_x[i] * with_x[i] : 0.0) + (bias ? alone[i] * alone[i] : 0.0);
    }
    return norm;
  };
  return norms_of_samples("sample_grad_norm_layer_norm", normalized, grad_outputs, one);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("sample_grad_norm_layer_norm_forward", TORCH_BOX(&sample_grad_norm_layer_norm_forward));
}

}  // namespace mbq
