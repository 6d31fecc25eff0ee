// quantize_codes on the CPU: code = clamp(rint((x - offset) / scale), lo, hi), the codes of fake_quantize.
#include <atomic>

#include "arguments/codes.h"
#include "cpu/engine/driver.h"

namespace mbq {
namespace {

template <class T, class W>
struct AnyNan {
  MBQ_HD void operator()(const T* x, int64_t n, bool* found) const {
    int any = 0;
    for (int64_t i = 0; i < n; ++i) any |= static_cast<W>(x[i]) != static_cast<W>(x[i]);
    *found = any != 0;
  }
};

// The forward loop, and a look at every block of x while it is in the cache: no code stands for NaN.
template <class T, class Code, class W = wide_t<T>>
struct CodesWork : ForwardWork<QuantizeCodes<W>, T, Code, W> {
  using Base = ForwardWork<QuantizeCodes<W>, T, Code, W>;
  std::atomic<bool>* nan;

  CodesWork(Layout layout, const std::vector<Level<QuantizeCodes<W>, W>>& levels, const T* x, Code* codes,
            std::atomic<bool>* found)
      : Base(layout, levels, x, {codes}), nan(found) {}

  void operator()(const Task& task, bool past_cache) const {
    Base::operator()(task, past_cache);
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride;
      bool found = false;
      run<AnyNan<T, W>>(this->x + begin, this->within(task.block, begin).n(), &found);
      if (found) nan->store(true, std::memory_order_relaxed);
    }
  }
};

template <class T, class Code>
void quantize(const Quantizers& q, const Tensor& codes) {
  using W = wide_t<T>;
  std::atomic<bool> nan = false;
  std::vector<CodesWork<T, Code>> works;
  EffectiveScales<W> none;
  works.emplace_back(q.layout, levels_of<QuantizeCodes, W>(q, none), static_cast<const T*>(q.x.const_data_ptr()),
                     static_cast<Code*>(codes.mutable_data_ptr()), &nan);
  forward_loop(works);
  check(!nan, q.op, ": x must not hold NaN, which no code stands for");
}

// A finite offset leaves NaN to x alone.
void check_offset(const Quantizers& q) {
  if (q.shifts.absent()) return;
  for (int64_t c = 0; c < q.layout.channels; ++c) {
    const double offset =
        q.x.scalar_type() == ScalarType::Double ? q.shifts.row<double>(0, c)[c] : q.shifts.row<float>(0, c)[c];
    check(std::isfinite(offset), q.op, ": offset must be finite, got ", offset, " (element ", c, ")");
  }
}

Tensor quantize_codes_forward(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& offset, int64_t bits,
                              bool is_signed, std::optional<int64_t> axis) {
  const char* op = "quantize_codes";
  const Quantizers q(op, x, axis, ranges_of(op, {bits}, is_signed), Rows(scale), Rows(offset));
  const Tensor codes = allocate_like(q.x, is_signed ? ScalarType::Char : ScalarType::Byte);
  q.check_against({codes});
  check_offset(q);
  dispatch_floats(op, x.scalar_type(), [&](auto storage) {
    if (is_signed) {
      quantize<decltype(storage), int8_t>(q, codes);
    } else {
      quantize<decltype(storage), uint8_t>(q, codes);
    }
  });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) { m.impl("quantize_codes_forward", TORCH_BOX(&quantize_codes_forward)); }

}  // namespace mbq
