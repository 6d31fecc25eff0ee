// fake_quantize_foreach: fake_quantize at K bit-widths of many tensors, all in one parallel loop or launch.
#include "fake_quantize_driver.h"

namespace MBQ_NAMESPACE {
namespace {

constexpr const char* kOp = "fake_quantize_foreach";

std::vector<Tensor> fake_quantize_foreach_forward(std::vector<Tensor> xs, std::vector<Tensor> scales,
                                                  std::vector<Tensor> offsets, std::vector<Tensor> scale_units,
                                                  std::vector<Tensor> scale_floors, std::vector<int64_t> bits,
                                                  bool is_signed, std::vector<int64_t> axes,
                                                  std::optional<ScalarType> out_dtype) {
  return quantize_forward_each<FakeQuantize>(
      quantizers_of_each(kOp, xs, scales, offsets, scale_units, scale_floors, bits, is_signed, axes), out_dtype);
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> fake_quantize_foreach_backward(
    std::vector<Tensor> grads, std::vector<Tensor> xs, std::vector<Tensor> scales, std::vector<Tensor> offsets,
    std::vector<Tensor> scale_units, std::vector<Tensor> scale_floors, std::vector<int64_t> bits, bool is_signed,
    std::vector<int64_t> axes, std::optional<double> grad_factor) {
  const Gradients all = quantize_backward_each<FakeQuantize>(
      quantizers_of_each(kOp, xs, scales, offsets, scale_units, scale_floors, bits, is_signed, axes), grads,
      grad_factor);
  return {all.xs, all.scales, all.shifts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) {
  m.impl("fake_quantize_foreach_forward", TORCH_BOX(&fake_quantize_foreach_forward));
  m.impl("fake_quantize_foreach_backward", TORCH_BOX(&fake_quantize_foreach_backward));
}

}  // namespace MBQ_NAMESPACE
