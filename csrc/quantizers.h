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
    const int64_t count = static_cast<int64_t>(ranges.size());
    MBQ_CHECK(count > 0 && scales.numel() % count == 0, op, ": scales must have one row per bit-width (", count,
              "), got ", scales.numel(), " elements");
    MBQ_CHECK(!shifts || shifts->numel() == scales.numel(), op, ": offsets must have as many elements as scales");
  }

  // What the loops take on trust: one gradient per quantizer, one scale per channel.
  void check(const Layout& layout, size_t tensors) const {
    MBQ_CHECK(tensors == ranges.size(), op, ": grads must be one per bit-width (", ranges.size(), "), got ", tensors);
    MBQ_CHECK(channels() == layout.channels, op, ": scales must have ", layout.channels, " channels, got ", channels());
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

inline std::vector<Bounds<double>> ranges_of(const std::vector<int64_t>& bits, bool is_signed) {
  std::vector<Bounds<double>> ranges;
  for (int64_t b : bits) ranges.push_back(bounds<double>(b, is_signed));
  return ranges;
}

}  // namespace mbq
