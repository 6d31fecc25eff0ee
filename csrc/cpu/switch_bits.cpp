// switch_bits on the CPU: code_l = clamp(round(code_h / 2^D), lo, hi), D = from_bits - to_bits
// (Huang et al., 2025, arXiv 2502.01199, eq. 2).
#include "bytes.h"

namespace mbq {
namespace {

// The shift is a constant of the loop: the compiler then makes vectors of 16-bit codes, not of 32-bit ones.
template <int shift>
struct SwitchCodes {
  MBQ_HD void operator()(const int8_t* __restrict from, int8_t* __restrict to, int64_t n, Switch s) const {
    s.shift = shift;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(switch_code<int16_t>(from[i], s));
  }
};

void switch_codes(const int8_t* from, int8_t* to, int64_t n, Switch s) {
  switch (s.shift) {
    case 0:
      return run<SwitchCodes<0>>(from, to, n, s);
    case 1:
      return run<SwitchCodes<1>>(from, to, n, s);
    case 2:
      return run<SwitchCodes<2>>(from, to, n, s);
    case 3:
      return run<SwitchCodes<3>>(from, to, n, s);
    case 4:
      return run<SwitchCodes<4>>(from, to, n, s);
    case 5:
      return run<SwitchCodes<5>>(from, to, n, s);
    default:
      return run<SwitchCodes<6>>(from, to, n, s);
  }
}

Tensor switch_bits_forward(const Tensor& given_codes, int64_t from_bits, int64_t to_bits, bool half_even) {
  const char* op = "switch_bits";
  check_codes(op, given_codes, true);
  const Switch to_low = checked_switch(op, from_bits, to_bits, half_even);
  const Tensor codes = dense(given_codes), out = allocate_like(codes);
  const int8_t* from = static_cast<const int8_t*>(codes.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  RangeCheck<int8_t> range(op, from_bits);
  const bool large = is_large(codes.numel());
  for_each_chunk(CodeRows(op, std::vector{codes.numel()}), [&](int64_t, int64_t begin, int64_t n) {
    range.see(from + begin, n);
    alignas(64) int8_t made[kChunk];
    switch_codes(from + begin, made, n, to_low);
    deliver(made, to + begin, n, large);
  });
  range.finish(from, codes.numel());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) { m.impl("switch_bits_forward", TORCH_BOX(&switch_bits_forward)); }

}  // namespace mbq
