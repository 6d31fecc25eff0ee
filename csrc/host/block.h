// What is done to one block of codes: reading, checking, switching, writing. It stays in the first-level cache.
#pragma once

#include "layout.h"

namespace mbq {

constexpr int64_t kBlock = 4096;  // a multiple of 8: blocks begin with a byte in every layout

struct alignas(64) Codes {
  int8_t values[kBlock];
};
static_assert(kBlock % kPlaneCodes == 0);

// The shift is the compiler's: by a variable it shifts 32-bit lanes, by a constant 16-bit lanes, three times as fast.
template <int odd, int shift>
struct SwitchCodes {
  MBQ_HD void operator()(const int8_t* from, int8_t* to, Switch given, int64_t n) const {
    const Switch rule{shift, (1 << shift) / 2 - odd, odd, given.lo, given.hi};
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(switch_code(static_cast<int>(from[i]), rule));
  }
};

// *outside = whether a code is not in [lo, hi]; without_zero: nor is zero allowed, as between -1 and +1.
struct CheckCodes {
  MBQ_HD void operator()(const int8_t* codes, int8_t lo, int8_t hi, bool without_zero, bool* outside, int64_t n) const {
    int8_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) wrong |= (codes[i] < lo) | (codes[i] > hi) | (without_zero & (codes[i] == 0));
    *outside = wrong != 0;
  }
};

// x_hat = code * scale + offset
template <class Code>
struct Decode {
  MBQ_HD void operator()(const Code* __restrict codes, float scale, float offset, float* __restrict out,
                         int64_t n) const {
    for (int64_t i = 0; i < n; ++i) out[i] = decode(static_cast<float>(codes[i]), scale, offset);
  }
};

// n codes from (row, column) on: where they lie, or unpacked into `codes`.
inline const int8_t* read_block(const Matrix<const uint8_t>& from, int64_t row, int64_t column, int64_t n,
                                Codes& codes) {
  const uint8_t* source = from.at(row, column);
  if (from.layout == Layout::codes) return reinterpret_cast<const int8_t*>(source);
  if (from.layout == Layout::planes)
    run<FromPlanes>(source, from.plane_bytes(), from.bits, from.is_signed, reinterpret_cast<uint8_t*>(codes.values),
                    from.bytes_of(n));
  else
    with_constant<1, 2, 4>(from.bits,
                           [&](auto bits) { run<FromFields<bits>>(source, codes.values, from.bytes_of(n)); });
  if (from.layout == Layout::planes) return codes.values;
  if (from.binary())
    run<FromBinary>(codes.values, n);
  else if (from.is_signed && from.bits < 8)
    run<ExtendSign>(codes.values, from.bits, n);
  return codes.values;
}

// Whether all n codes are codes of the matrix's bit-width; only bytes can hold others.
inline bool in_range(const Matrix<const uint8_t>& from, const int8_t* codes, int64_t n) {
  if (from.layout != Layout::codes || from.bits == 8) return true;
  const Bounds<int> range = bounds<int>(from.bits, from.is_signed);
  bool outside = false;
  run<CheckCodes>(codes, static_cast<int8_t>(range.lo), static_cast<int8_t>(range.hi), from.binary(), &outside, n);
  return !outside;
}

// n codes at the bit-width asked for, from `from` to `to`.
inline void switch_block(const int8_t* from, int8_t* to, Switch rule, int64_t n) {
  if (rule.shift == 0 && from != to) std::memcpy(to, from, n);
  with_constant<1, 2, 3, 4, 5, 6>(rule.shift, [&](auto shift) {
    rule.odd ? run<SwitchCodes<1, shift>>(from, to, rule, n) : run<SwitchCodes<0, shift>>(from, to, rule, n);
  });
}

// The same to `codes`, or where they lie if nothing has to be done to them.
inline const int8_t* switched_block(const int8_t* from, Codes& codes, Switch rule, int64_t n) {
  if (rule.shift == 0) return from;
  switch_block(from, codes.values, rule, n);
  return codes.values;
}

// Writes n codes as planes or packed, at (row, column); changes `codes`.
inline void pack_block(const Matrix<uint8_t>& to, int64_t row, int64_t column, int64_t n, Codes& codes) {
  const int64_t bytes = to.bytes_of(n);
  if (to.binary()) run<ToBinary>(codes.values, n);
  std::memset(codes.values + n, 0, (n + kPlaneCodes - 1) / kPlaneCodes * kPlaneCodes - n);
  if (to.layout == Layout::planes)
    run<ToPlanes>(reinterpret_cast<const uint8_t*>(codes.values), to.at(row, column), to.plane_bytes(), to.bits, bytes);
  else
    with_constant<1, 2, 4>(to.bits, [&](auto bits) {
      run<ToFields<bits>>(static_cast<const int8_t*>(codes.values), to.at(row, column), bytes);
    });
}

}  // namespace mbq
