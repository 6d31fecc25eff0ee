// Loops over codes in bytes on the CPU: switching, packing and unpacking.
#pragma once

#include "isa.h"
#include "math/code_math.h"

namespace mbq {

// Bytes shift by constants alone.
template <int shift>
struct SwitchChunk {
  MBQ_HD void operator()(const int8_t* from, int8_t* to, int64_t n, Switch s) const {
    s.shift = shift;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) to[i] = switch_code(from[i], s);
  }
};

// n codes from anywhere, also from where they go; shift > 0.
inline void switch_codes(const int8_t* from, int8_t* to, int64_t n, Switch s) {
  with_constant<1, 2, 3, 4, 5, 6>(s.shift, [&](auto shift) { run<SwitchChunk<shift>>(from, to, n, s); });
}

constexpr int64_t kPackCodes = 128;  // packed at a time

// Fields of `bits` in n bytes side by side: pairs of them in half as many bytes, until these are full.
template <int bits, int64_t n>
MBQ_HD void join_fields(const uint8_t (&fields)[n], uint8_t* packed) {
  if constexpr (bits == 8) {
    std::memcpy(packed, fields, n);
  } else {
    alignas(64) uint16_t pairs[n / 2];
    alignas(64) uint8_t joined[n / 2];
    std::memcpy(pairs, fields, n);
    for (uint16_t& pair : pairs) pair = pair_fields(pair, 16, bits);
    for (int64_t i = 0; i < n / 2; ++i) joined[i] = static_cast<uint8_t>(pairs[i]);
    join_fields<2 * bits>(joined, packed);
  }
}

// Reads and writes full steps of kPackCodes.
template <int bits, bool is_signed>
struct PackChunk {
  static constexpr bool kSigned = is_signed;
  static constexpr uint8_t kFill = is_signed && bits == 1 ? 255 : 0;  // a code whose field is 0
  MBQ_HD void operator()(const uint8_t* __restrict codes, uint8_t* __restrict packed, int64_t n) const {
    for (int64_t i = 0; i < n; i += kPackCodes) {
      alignas(64) uint64_t words[kPackCodes / 8];
      alignas(64) uint8_t fields[kPackCodes];
      std::memcpy(words, codes + i, kPackCodes);
      for (uint64_t& word : words) word = to_fields(word, bits, is_signed);
      std::memcpy(fields, words, kPackCodes);
      join_fields<bits>(fields, packed + i * bits / 8);
    }
  }
};

template <int bits, bool is_signed>
struct UnpackChunk {
  static constexpr bool kSigned = is_signed;
  using Packed = packed_word_t<bits>;
  MBQ_HD void operator()(const Packed* __restrict packed, uint64_t* __restrict codes, int64_t words) const {
    for (int64_t i = 0; i < words; ++i) codes[i] = from_fields(spread_fields(packed[i], bits), bits, is_signed);
  }
};

}  // namespace mbq
