// fake_quantize_foreach on CUDA: fake_quantize at K bit-widths of many tensors, all in one launch.
#include "quantizer_backward.cuh"

namespace mbq::cuda {
namespace {

constexpr const char* kOp = "fake_quantize_foreach";

std::vector<Tensor> fake_quantize_foreach_forward(std::vector<Tensor> xs, std::vector<Tensor> scales,
                                                  std::vector<Tensor> offsets, std::vector<Tensor> scale_units,
                                                  std::vector<Tensor> scale_floors, std::vector<int64_t> bits,
                                                  bool is_signed, std::vector<int64_t> axes,
                                                  std::optional<ScalarType> out_dtype) {
  return quantize_forward<FakeQuantize, true>(
      quantizers_of_each(kOp, xs, scales, offsets, scale_units, scale_floors, bits, is_signed, axes), out_dtype);
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> fake_quantize_foreach_backward(
    std::vector<Tensor> grads, std::vector<Tensor> xs, std::vector<Tensor> scales, std::vector<Tensor> offsets,
    std::vector<Tensor> scale_units, std::vector<Tensor> scale_floors, std::vector<int64_t> bits, bool is_signed,
    std::vector<int64_t> axes, std::optional<double> grad_factor) {
  const Gradients all = quantize_backward<FakeQuantize, true>(
      quantizers_of_each(kOp, xs, scales, offsets, scale_units, scale_floors, bits, is_signed, axes), grads,
      grad_factor);
  return {all.xs, all.scales, all.shifts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) {
  m.impl("fake_quantize_foreach_forward", TORCH_BOX(&fake_quantize_foreach_forward));
  m.impl("fake_quantize_foreach_backward", TORCH_BOX(&fake_quantize_foreach_backward));
}

}  // namespace mbq::cuda
