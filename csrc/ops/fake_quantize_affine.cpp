// fake_quantize_affine: x_hat = (clamp(rint(x * (1/scale)) + zp, quant_min, quant_max) - zp) * scale
// (Jacob et al., 2018, arXiv 1712.05877, eq. 1 and 12), and the gradients of torch's learnable fake-quantization.
#include "quantizer_driver.h"

namespace MBQ_NAMESPACE {
namespace {

Quantizers quantizers(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                      int64_t quant_max, std::optional<int64_t> axis) {
  const Bounds<double> range{static_cast<double>(quant_min), static_cast<double>(quant_max)};
  return {"fake_quantize_affine", x, axis, {range}, Rows(scale), Rows(zero_point)};
}

Tensor fake_quantize_affine_forward(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                                    int64_t quant_max, std::optional<int64_t> axis) {
  return quantize_forward<FakeQuantizeAffine>({quantizers(x, scale, zero_point, quant_min, quant_max, axis)}, {})[0];
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_affine_backward(const Tensor& grad, const Tensor& x,
                                                                 const Tensor& scale, const Tensor& zero_point,
                                                                 int64_t quant_min, int64_t quant_max,
                                                                 std::optional<int64_t> axis, double grad_factor) {
  return quantize_backward<FakeQuantizeAffine>(quantizers(x, scale, zero_point, quant_min, quant_max, axis), {grad},
                                               grad_factor);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) {
  m.impl("fake_quantize_affine_forward", TORCH_BOX(&fake_quantize_affine_forward));
  m.impl("fake_quantize_affine_backward", TORCH_BOX(&fake_quantize_affine_backward));
}

}  // namespace MBQ_NAMESPACE
