// fake_quantize: x_hat = clamp(rint((x - offset) / scale), lo, hi) * scale + offset, and its LSQ gradients
// (Esser et al., 2020, arXiv 1902.08153, eq. 1-3).
#include "fake_quantize_driver.h"

namespace MBQ_NAMESPACE {
namespace {

Quantizers quantizers(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& offset,
                      const std::optional<Tensor>& scale_unit, const std::optional<Tensor>& scale_floor, int64_t bits,
                      bool is_signed, std::optional<int64_t> axis) {
  const char* op = "fake_quantize";
  return {
      op, x, axis, ranges_of(op, {bits}, is_signed), Rows(scale), Rows(offset), Rows(scale_unit), Rows(scale_floor)};
}

Tensor fake_quantize_forward(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& offset,
                             const std::optional<Tensor>& scale_unit, const std::optional<Tensor>& scale_floor,
                             int64_t bits, bool is_signed, std::optional<int64_t> axis,
                             std::optional<ScalarType> out_dtype) {
  return quantize_forward<FakeQuantize>({quantizers(x, scale, offset, scale_unit, scale_floor, bits, is_signed, axis)},
                                        out_dtype)[0];
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_backward(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                                          const std::optional<Tensor>& offset,
                                                          const std::optional<Tensor>& scale_unit,
                                                          const std::optional<Tensor>& scale_floor, int64_t bits,
                                                          bool is_signed, std::optional<int64_t> axis,
                                                          std::optional<double> grad_factor) {
  return quantize_backward<FakeQuantize>(quantizers(x, scale, offset, scale_unit, scale_floor, bits, is_signed, axis),
                                         {grad}, grad_factor);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) {
  m.impl("fake_quantize_forward", TORCH_BOX(&fake_quantize_forward));
  m.impl("fake_quantize_backward", TORCH_BOX(&fake_quantize_backward));
}

}  // namespace MBQ_NAMESPACE
