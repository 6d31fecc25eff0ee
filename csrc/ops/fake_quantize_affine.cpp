// fake_quantize_affine: x_hat = (clamp(rint(x * (1/scale)) + zp, quant_min, quant_max) - zp) * scale
// (Jacob et al., 2018, arXiv 1712.05877, eq. 1 and 12), and the gradients of torch's learnable fake-quantization.
#include "quantizer_driver.h"

namespace MBQ_NAMESPACE {
namespace {

// form: a bit for each member of AffineForm, in their order; 0 is torch.ao's arithmetic, which has a loop of its own.
Quantizers quantizers(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                      int64_t quant_max, std::optional<int64_t> axis, int64_t form) {
  const char* op = "fake_quantize_affine";
  check(0 <= form && form < 64, op, ": form must be between 0 and 63, got ", form);
  const Bounds<double> range{static_cast<double>(quant_min), static_cast<double>(quant_max)};
  Quantizers q(op, x, axis, {range}, Rows(scale), Rows(zero_point));
  const auto bit = [form](int place) { return (form >> place & 1) != 0; };
  q.form = {bit(0), bit(1), bit(2), bit(3), bit(4), bit(5)};
  return q;
}

Tensor fake_quantize_affine_forward(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                                    int64_t quant_max, std::optional<int64_t> axis, int64_t form) {
  const Quantizers q = quantizers(x, scale, zero_point, quant_min, quant_max, axis, form);
  return (form == 0 ? quantize_forward<FakeQuantizeAffine>({q}, {}) : quantize_forward<GeneralAffine>({q}, {}))[0];
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_affine_backward(const Tensor& grad, const Tensor& x,
                                                                 const Tensor& scale, const Tensor& zero_point,
                                                                 int64_t quant_min, int64_t quant_max,
                                                                 std::optional<int64_t> axis, double grad_factor,
                                                                 int64_t form) {
  const Quantizers q = quantizers(x, scale, zero_point, quant_min, quant_max, axis, form);
  return form == 0 ? quantize_backward<FakeQuantizeAffine>(q, {grad}, grad_factor)
                   : quantize_backward<GeneralAffine>(q, {grad}, grad_factor);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) {
  m.impl("fake_quantize_affine_forward", TORCH_BOX(&fake_quantize_affine_forward));
  m.impl("fake_quantize_affine_backward", TORCH_BOX(&fake_quantize_affine_backward));
}

}  // namespace MBQ_NAMESPACE
