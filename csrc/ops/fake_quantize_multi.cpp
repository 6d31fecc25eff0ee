// fake_quantize_multi: fake_quantize at K bit-widths from one read of x, gradients of x added in one pass.
#include "fake_quantize_driver.h"

namespace MBQ_NAMESPACE {
namespace {

Quantizers quantizers(const Tensor& x, const Tensor& scales, const std::optional<Tensor>& offsets,
                      const std::optional<Tensor>& scale_units, const std::optional<Tensor>& scale_floors,
                      const std::vector<int64_t>& bits, bool is_signed, std::optional<int64_t> axis) {
  const char* op = "fake_quantize_multi";
  return {
      op, x, axis, ranges_of(op, bits, is_signed), Rows(scales), Rows(offsets), Rows(scale_units), Rows(scale_floors)};
}

std::vector<Tensor> fake_quantize_multi_forward(const Tensor& x, const Tensor& scales,
                                                const std::optional<Tensor>& offsets,
                                                const std::optional<Tensor>& scale_units,
                                                const std::optional<Tensor>& scale_floors, std::vector<int64_t> bits,
                                                bool is_signed, std::optional<int64_t> axis,
                                                std::optional<ScalarType> out_dtype) {
  return quantize_forward<FakeQuantize>(
      {quantizers(x, scales, offsets, scale_units, scale_floors, bits, is_signed, axis)}, out_dtype);
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_multi_backward(
    std::vector<Tensor> grads, const Tensor& x, const Tensor& scales, const std::optional<Tensor>& offsets,
    const std::optional<Tensor>& scale_units, const std::optional<Tensor>& scale_floors, std::vector<int64_t> bits,
    bool is_signed, std::optional<int64_t> axis, std::optional<double> grad_factor) {
  return quantize_backward<FakeQuantize>(
      quantizers(x, scales, offsets, scale_units, scale_floors, bits, is_signed, axis), grads, grad_factor);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) {
  m.impl("fake_quantize_multi_forward", TORCH_BOX(&fake_quantize_multi_forward));
  m.impl("fake_quantize_multi_backward", TORCH_BOX(&fake_quantize_multi_backward));
}

}  // namespace MBQ_NAMESPACE
