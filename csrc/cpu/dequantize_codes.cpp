// dequantize_codes on the CPU: x_hat = clamp(round(code_h / 2^D), lo, hi) * 2^D * scale
// (Huang et al., 2025, arXiv 2502.01199, eq. 2-3).
#include "cpu/engine/bytes.h"
#include "cpu/engine/driver.h"

namespace mbq {
namespace {

// The forward loop, and a look at every block of codes while it is in the cache.
template <class Out, class W>
struct ValuesWork : ForwardWork<DequantizeCodes<W>, int8_t, Out, W> {
  using Base = ForwardWork<DequantizeCodes<W>, int8_t, Out, W>;
  RangeCheck<int8_t>* range;

  ValuesWork(Layout layout, const std::vector<Level<DequantizeCodes<W>, W>>& levels, const int8_t* codes, Out* out,
             RangeCheck<int8_t>* check)
      : Base(layout, levels, codes, {out}), range(check) {}

  void operator()(const Task& task, bool past_cache) const {
    Base::operator()(task, past_cache);
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride;
      range->see(this->x + begin, this->within(task.block, begin).n());
    }
  }
};

template <class Out, class W = wide_t<Out>>
void dequantize(const Tensor& codes, const Layout& layout, const Tensor& scale, int64_t from_bits, Switch to_low,
                const Tensor& out) {
  RangeCheck<int8_t> range("dequantize_codes", from_bits);
  const W* scales = static_cast<const W*>(scale.const_data_ptr());
  for (int64_t c = 0; c < layout.channels; ++c)
    check(scales[c] > 0 && std::isfinite(scales[c]), range.op, ": scale must be finite and > 0, got ", scales[c],
          " (element ", c, ")");
  const DequantizeCodes<W> quantizer{range.range, to_low, static_cast<W>(1 << to_low.shift)};
  const int8_t* from = static_cast<const int8_t*>(codes.const_data_ptr());
  const std::vector<Level<DequantizeCodes<W>, W>> levels{{quantizer, scales, nullptr}};
  std::vector<ValuesWork<Out, W>> works;
  works.emplace_back(layout, levels, from, static_cast<Out*>(out.mutable_data_ptr()), &range);
  forward_loop(works);
  range.finish(from, codes.numel());
}

Tensor dequantize_codes_forward(const Tensor& given_codes, const Tensor& given_scale, int64_t from_bits,
                                int64_t to_bits, std::optional<int64_t> axis, ScalarType dtype, bool half_even) {
  const char* op = "dequantize_codes";
  check_codes(op, given_codes, true);
  const Switch to_low = checked_switch(op, from_bits, to_bits, half_even);
  const Tensor codes = dense(given_codes), scale = make_contiguous(given_scale), out = allocate_like(codes, dtype);
  const Layout layout = layout_of(op, codes, axis);
  const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(scale.numel() == layout.channels && scale.scalar_type() == wide && same_device(scale, codes), op,
        ": scale must have ", layout.channels, " elements and be float64 for float64 results, else float32");
  dispatch_floats(op, dtype,
                  [&](auto storage) { dequantize<decltype(storage)>(codes, layout, scale, from_bits, to_low, out); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) { m.impl("dequantize_codes_forward", TORCH_BOX(&dequantize_codes_forward)); }

}  // namespace mbq
