// What is done to one block of codes: reading, checking, switching, writing.
#pragma once

#include "packing.h"

namespace mbq {

// A multiple of 8: blocks begin with a byte in every packing. Larger ones leave memory waiting while planes are joined.
constexpr int64_t kCodeBlock = 2048;
constexpr int64_t kAhead = 4096;  // bytes fetched in advance: the processor itself stops at the end of a page

struct alignas(64) Codes {
  int8_t values[kCodeBlock];
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(values); }
  uint64_t* words() { return reinterpret_cast<uint64_t*>(values); }
};
static_assert(kCodeBlock % kPlaneCodes == 0);

// *outside = whether a code is not in [lo, hi]; without_zero: nor is zero allowed, as between -1 and +1.
struct CheckCodes {
  MBQ_HD void operator()(const int8_t* codes, int8_t lo, int8_t hi, bool without_zero, bool* outside, int64_t n) const {
    int8_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) wrong |= (codes[i] < lo) | (codes[i] > hi) | (without_zero & (codes[i] == 0));
    *outside = wrong != 0;
  }
};

// What becomes of codes: themselves, fields of kBits, or x_hat = code * scale + offset. A form makes `n` of it, a
// constant; kFill is a code that fills up the last byte with zeros; kSwitches: such codes can be of a lower bit-width.
struct AsCodes {
  static constexpr int kBits = 8;
  static constexpr uint8_t kFill = 0;
  static constexpr bool kSwitches = true;
  MBQ_HD void operator()(const uint8_t* codes, uint8_t* made, int64_t n) const { std::memcpy(made, codes, n); }
};

template <int bits, bool is_signed>
struct AsFields : PackChunk<bits, is_signed> {
  static constexpr int kBits = bits;
  static constexpr bool kSwitches = is_signed && bits > 1;
};

template <class Code>
struct AsWeights {
  static constexpr int kBits = 32;
  static constexpr uint8_t kFill = 0;
  static constexpr bool kSwitches = std::is_signed_v<Code>;
  float scale, offset;
  MBQ_HD void operator()(const uint8_t* codes, uint8_t* made, int64_t n) const {
    float* weights = reinterpret_cast<float*>(made);
    for (int64_t i = 0; i < n; ++i) weights[i] = decode(static_cast<float>(static_cast<Code>(codes[i])), scale, offset);
  }
};

// Switches n codes from anywhere and writes their form, in one pass and in registers: while one line is computed others
// are read and written.
template <class Form, int shift>
struct Convert {
  static constexpr int64_t kTile = Form::kBits < 8 ? 512 / Form::kBits : 64, kBytes = kTile * Form::kBits / 8;

  static constexpr int64_t bytes_of(int64_t n) { return (n * Form::kBits + 7) / 8; }

  MBQ_HD static void make(const uint8_t* from, uint8_t* made, int64_t n, Switch rule, const Form& form) {
    alignas(64) uint8_t codes[kTile];
    if (shift == 0) return form(from, made, n);
    SwitchChunk<shift>{}(reinterpret_cast<const int8_t*>(from), reinterpret_cast<int8_t*>(codes), n, rule);
    form(codes, made, n);
  }

  // Of less than a tile; fields are made of whole tiles.
  MBQ_HD static void make_rest(const uint8_t* from, uint8_t* to, int64_t n, Switch rule, const Form& form) {
    if constexpr (Form::kBits >= 8) return make(from, to, n, rule, form);
    alignas(64) uint8_t part[kTile], made[kBytes];
    std::memset(part, Form::kFill, kTile);
    for (int64_t i = 0; i < n; i += 8) store_bytes(load_bytes(from + i, n - i), part + i, n - i);
    make(part, made, kTile, rule, form);
    for (int64_t i = 0; i < bytes_of(n); i += 8) store_bytes(load_bytes(made + i, 8), to + i, bytes_of(n) - i);
  }

  template <Isa level>
  MBQ_HD void operator()(const uint8_t* from, uint8_t* to, int64_t n, Switch rule, Form form, bool past_cache) const {
    alignas(64) uint8_t made[kBytes];
    const int64_t to_line = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) % 64) * 8 / Form::kBits;
    int64_t m = past_cache && to_line > 0 ? to_line : kTile;
    for (int64_t at = 0; at < n; at += m, m = kTile) {
      m = std::min(m, n - at);
      if (m < kTile) {
        make_rest(from + at, to + bytes_of(at), m, rule, form);
        continue;
      }
      for (int64_t line = 0; line < kTile; line += 64) __builtin_prefetch(from + at + kAhead + line);
      make(from + at, made, kTile, rule, form);
      if (past_cache) {
        Lines<level>::stream(made, to + bytes_of(at), kBytes);
      } else {
        std::memcpy(to + bytes_of(at), made, kBytes);
      }
    }
  }
};

// Calls body with the Chunk of `bits`, 1, 2 or 4, and `is_signed`.
template <template <int, bool> class Chunk, class Body>
inline void with_chunk(int bits, bool is_signed, const Body& body) {
  with_constant<1, 2, 4>(bits, [&](auto b) { return is_signed ? body(Chunk<b, true>{}) : body(Chunk<b, false>{}); });
}

// n codes from (row, column) on: where they lie, or unpacked into `codes`.
inline const int8_t* read_block(const Matrix<const uint8_t>& from, int64_t row, int64_t column, int64_t n,
                                Codes& codes) {
  const uint8_t* source = from.at(row, column);
  if (from.packing == Packing::codes) return reinterpret_cast<const int8_t*>(source);
  if (from.packing == Packing::planes)
    join_planes(source, from.plane_bytes(), from.bits, from.is_signed, codes.bytes(), from.bytes_of(n));
  else
    with_chunk<UnpackChunk>(from.bits, from.is_signed, [&](auto chunk) {
      alignas(64) typename decltype(chunk)::Packed packed[kCodeBlock / 8];
      std::memcpy(packed, source, from.bytes_of(n));
      run<decltype(chunk)>(static_cast<const typename decltype(chunk)::Packed*>(packed), codes.words(), (n + 7) / 8);
    });
  return codes.values;
}

// Whether all n codes are codes of the matrix's bit-width; only bytes can hold others.
inline bool in_range(const Matrix<const uint8_t>& from, const int8_t* codes, int64_t n) {
  if (from.packing != Packing::codes || from.bits == 8) return true;
  const Bounds<int> range = bounds<int>(from.bits, from.is_signed);
  bool outside = false;
  run<CheckCodes>(codes, static_cast<int8_t>(range.lo), static_cast<int8_t>(range.hi), from.binary(), &outside, n);
  return !outside;
}

// n codes at the bit-width asked for, in the form asked for, to `to`.
template <class Form>
inline void convert_block(const int8_t* codes, uint8_t* to, int64_t n, Switch rule, const Form& form, bool past_cache) {
  const auto go = [&](auto shift) {
    run<Convert<Form, shift>>(reinterpret_cast<const uint8_t*>(codes), to, n, rule, form, past_cache);
  };
  if constexpr (Form::kSwitches)
    with_constant<0, 1, 2, 3, 4, 5, 6>(rule.shift, go);
  else
    go(std::integral_constant<int, 0>{});
}

// Writes n codes, which lie in `codes`, as planes at (row, column).
inline void split_block(const Matrix<uint8_t>& to, int64_t row, int64_t column, int64_t n, Codes& codes) {
  std::memset(codes.values + n, 0, (n + kPlaneCodes - 1) / kPlaneCodes * kPlaneCodes - n);
  split_planes(codes.bytes(), to.at(row, column), to.plane_bytes(), to.bits, to.bytes_of(n));
}

}  // namespace mbq
