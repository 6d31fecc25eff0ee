// fake_quantize_affine: x_hat = (clamp(rint(x * (1/scale)) + zp, quant_min, quant_max) - zp) * scale
// (Jacob et al., 2018, arXiv 1712.05877, eq. 1 and 12), and the gradients of torch's learnable fake-quantization.
#include "quantizer_driver.h"

namespace MBQ_NAMESPACE {
namespace {

// Integer zero points, int32, as the loops take them; what the CPU can look at must lie in the range.
Tensor floating_point(const Tensor& zero_point, const Tensor& like, const Bounds<double>& range) {
  if (zero_point.scalar_type() != ScalarType::Int) return zero_point;
  if (zero_point.is_cpu()) {
    const Tensor values = make_contiguous(zero_point);
    const auto* value = static_cast<const int32_t*>(values.const_data_ptr());
    for (int64_t c = 0; c < values.numel(); ++c)
      check(range.lo <= value[c] && value[c] <= range.hi,
            "fake_quantize_affine: zero_point must be between quant_min and quant_max, ",
            static_cast<int64_t>(range.lo), " and ", static_cast<int64_t>(range.hi), ", got ", value[c], " (element ",
            c, ")");
  }
  Tensor found = allocate_like(make_contiguous(zero_point), like.scalar_type());
  torch::stable::copy_(found, zero_point);
  return found;
}

// form: a bit for each member of AffineForm, in their order; 0 is torch.ao's arithmetic, which has a loop of its own.
Quantizers quantizers(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                      int64_t quant_max, std::optional<int64_t> axis, int64_t form) {
  const char* op = "fake_quantize_affine";
  check(0 <= form && form < 64, op, ": form must be between 0 and 63, got ", form);
  const Bounds<double> range{static_cast<double>(quant_min), static_cast<double>(quant_max)};
  Quantizers q(op, x, axis, {range}, Rows(scale), Rows(floating_point(zero_point, scale, range)));
  const auto bit = [form](int place) { return static_cast<float>(form >> place & 1); };
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
