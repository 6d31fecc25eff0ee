// double_round: codes at high_bits, rounded again to every lower bit-width, from one read of x and one scale
// (Huang et al., 2025, arXiv 2502.01199, eq. 1-3 and 13-14).
#include "quantizer_driver.h"

namespace MBQ_NAMESPACE {
namespace {

std::vector<Tensor> double_round_forward(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& scale_unit,
                                         const std::optional<Tensor>& scale_floor, int64_t high_bits,
                                         std::vector<int64_t> bits, std::optional<int64_t> axis, bool half_up,
                                         std::optional<ScalarType> out_dtype) {
  return quantize_forward<DoubleRound>(
      {double_rounders(x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up)}, out_dtype);
}

std::tuple<Tensor, Tensor> double_round_backward(std::vector<Tensor> grads, const Tensor& x, const Tensor& scale,
                                                 const std::optional<Tensor>& scale_unit,
                                                 const std::optional<Tensor>& scale_floor, int64_t high_bits,
                                                 std::vector<int64_t> bits, std::optional<int64_t> axis, bool half_up,
                                                 std::optional<double> grad_factor, bool scale_chain) {
  const Quantizers quantizers =
      double_rounders(x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up, scale_chain);
  const auto [grad_x, grad_scale, none] = quantize_backward<DoubleRound>(quantizers, grads, grad_factor);
  return {grad_x, grad_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) {
  m.impl("double_round_forward", TORCH_BOX(&double_round_forward));
  m.impl("double_round_backward", TORCH_BOX(&double_round_backward));
}

}  // namespace MBQ_NAMESPACE
