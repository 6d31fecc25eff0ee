// What is done to one block of codes: reading, checking, switching, writing. It stays in the first-level cache.
#pragma once

#include "layout.h"

namespace mbq {

constexpr int64_t kBlock = 4096;  // a multiple of 8: blocks begin with a byte in every layout

struct alignas(64) Codes {
  int8_t values[kBlock];
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(values); }
  uint64_t* words() { return reinterpret_cast<uint64_t*>(values); }
};
static_assert(kBlock % kPlaneCodes == 0);

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

// Calls body with the Chunk of `bits`, 1, 2 or 4, and `is_signed`.
template <template <int, bool> class Chunk, class Body>
inline void with_chunk(int bits, bool is_signed, const Body& body) {
  with_constant<1, 2, 4>(bits, [&](auto b) { is_signed ? body(Chunk<b, true>{}) : body(Chunk<b, false>{}); });
}

// n codes from (row, column) on: where they lie, or unpacked into `codes`.
inline const int8_t* read_block(const Matrix<const uint8_t>& from, int64_t row, int64_t column, int64_t n,
                                Codes& codes) {
  const uint8_t* source = from.at(row, column);
  if (from.layout == Layout::codes) return reinterpret_cast<const int8_t*>(source);
  if (from.layout == Layout::planes)
    join_planes(source, from.plane_bytes(), from.bits, from.is_signed, codes.bytes(), from.bytes_of(n));
  else
    with_chunk<UnpackChunk>(from.bits, from.is_signed, [&](auto chunk) {
      alignas(64) typename decltype(chunk)::Packed packed[kBlock / 8];
      std::memcpy(packed, source, from.bytes_of(n));
      run<decltype(chunk)>(static_cast<const typename decltype(chunk)::Packed*>(packed), codes.words(), (n + 7) / 8);
    });
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

// n codes at the bit-width asked for: in `codes`, or where they lie if nothing has to be done to them.
inline const int8_t* switched_block(const int8_t* from, Codes& codes, Switch rule, int64_t n) {
  if (rule.shift == 0) return from;
  if (from != codes.values) std::memcpy(codes.values, from, n);
  run<SwitchChunk>(codes.words(), (n + 7) / 8, rule);
  return codes.values;
}

// Writes n codes as planes or packed, at (row, column); changes `codes` behind them.
inline void pack_block(const Matrix<uint8_t>& to, int64_t row, int64_t column, int64_t n, Codes& codes) {
  const int64_t bytes = to.bytes_of(n), filled = (n + kPlaneCodes - 1) / kPlaneCodes * kPlaneCodes;
  std::memset(codes.values + n, to.binary() ? -1 : 0, filled - n);  // their fields are 0
  if (to.layout == Layout::planes)
    split_planes(codes.bytes(), to.at(row, column), to.plane_bytes(), to.bits, bytes);
  else
    with_chunk<PackChunk>(to.bits, to.is_signed, [&](auto chunk) {
      alignas(64) typename decltype(chunk)::Packed packed[kBlock / 8];
      run<decltype(chunk)>(static_cast<const uint64_t*>(codes.words()),
                           static_cast<typename decltype(chunk)::Packed*>(packed), (n + 7) / 8);
      std::memcpy(to.at(row, column), packed, bytes);
    });
}

}  // namespace mbq
