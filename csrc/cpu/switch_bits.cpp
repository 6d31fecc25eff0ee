// switch_bits on the CPU: code_l = clamp(round(code_h / 2^D), lo, hi), D = from_bits - to_bits
// (Huang et al., 2025, arXiv 2502.01199, eq. 2).
#include "cpu/engine/bytes.h"
#include "simd/code_words.h"

namespace mbq {
namespace {

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
    fetch(from + begin + n, n);
    if (to_low.shift > 0) switch_codes(from + begin, made, n, to_low);
    deliver(to_low.shift > 0 ? made : from + begin, to + begin, n, large);
  });
  range.finish(from, codes.numel());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) { m.impl("switch_bits_forward", TORCH_BOX(&switch_bits_forward)); }

}  // namespace mbq
