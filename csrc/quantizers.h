// K quantizers over one x, as the raw operators receive them. Shared by csrc/cpu and csrc/cuda.
#pragma once

#include "quant_math.h"
#include "tensor.h"

namespace mbq {

// scales and shifts (offsets or zero points) are contiguous, K rows of C; shifts may be absent.
struct __attribute__((visibility("hidden"))) Quantizers {
  const char* op;
  std::vector<Bounds<double>> ranges;
  Tensor scales;
  std::optional<Tensor> shifts;

  Quantizers(const char* name, std::vector<Bounds<double>> r, const Tensor& s, const std::optional<Tensor>& shift)
      : op(name), ranges(std::move(r)), scales(make_contiguous(s)) {
    if (shift) shifts = make_contiguous(*shift);
  }

  // Bit-widths instead of ranges.
  Quantizers(const char* name, const std::vector<int64_t>& bits, bool is_signed, const Tensor& s,
             const std::optional<Tensor>& shift)
      : Quantizers(name, {}, s, shift) {
    for (int64_t b : bits) {
      check(1 <= b && b <= 8, op, ": bits must be between 1 and 8, got ", b);
      ranges.push_back(bounds<double>(b, is_signed));
    }
  }

  // What the loops take on trust: one tensor (result or gradient) per quantizer, one parameter per channel, dtypes.
  void check_against(const Tensor& x, const Layout& layout, const std::vector<Tensor>& tensors) const {
    const int64_t wanted = static_cast<int64_t>(ranges.size()) * layout.channels;
    check(!ranges.empty() && tensors.size() == ranges.size(), op, ": needs one tensor per bit-width (", ranges.size(),
          "), got ", tensors.size());
    for (const Tensor& tensor : tensors)
      check(tensor.scalar_type() == tensors[0].scalar_type(), op, ": all gradients must have one dtype");
    const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    for (const Tensor& parameter : shifts ? std::vector<Tensor>{scales, *shifts} : std::vector<Tensor>{scales})
      check(parameter.numel() == wanted && parameter.scalar_type() == dtype && same_device(parameter, x), op,
            ": scales and offsets must have ", wanted,
            " elements, x's device, and be float64 where x is, else float32");
  }

  int64_t channels() const { return scales.numel() / static_cast<int64_t>(ranges.size()); }

  // One per quantizer: what is given, or LSQ's.
  std::vector<double> grad_factors(const Layout& layout, std::optional<double> given) const {
    std::vector<double> factors;
    for (const Bounds<double>& range : ranges)
      factors.push_back(given.value_or(default_grad_factor(layout.outer * layout.inner, range.hi)));
    return factors;
  }
};

}  // namespace mbq
