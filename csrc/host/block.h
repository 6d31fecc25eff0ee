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

// Words of eight codes from anywhere, at the bit-width asked for.
MBQ_HD uint64_t switched_word(const uint8_t* codes, Switch rule) {
  uint64_t word;
  std::memcpy(&word, codes, 8);
  return rule.shift == 0 ? word : switch_words(word, rule);
}

// The last n < 8 codes of a row; the bytes behind them are `fill`'s.
MBQ_HD uint64_t switched_rest(const uint8_t* codes, int64_t n, Switch rule, uint64_t fill) {
  const uint64_t word = load_bytes(codes, n) | fill << 8 * n;
  return rule.shift == 0 ? word : switch_words(word, rule);
}

struct SwitchFrom {
  MBQ_HD void operator()(const uint8_t* __restrict codes, uint64_t* __restrict words, int64_t n, Switch rule) const {
    for (int64_t i = 0; i < n / 8; ++i) words[i] = switched_word(codes + 8 * i, rule);
    if (n % 8 != 0) words[n / 8] = switched_rest(codes + n / 8 * 8, n % 8, rule, 0);
  }
};

template <int bits, bool is_signed>
struct SwitchAndPack : PackChunk<bits, is_signed> {
  using Pack = PackChunk<bits, is_signed>;
  using Packed = typename Pack::Packed;

  MBQ_HD static Packed packed(uint64_t word) {
    return static_cast<Packed>(gather_fields(to_fields(word, bits, is_signed), bits));
  }
  MBQ_HD void operator()(const uint8_t* __restrict codes, Packed* __restrict to, int64_t n, Switch rule) const {
    for (int64_t i = 0; i < n / 8; ++i) to[i] = packed(switched_word(codes + 8 * i, rule));
    if (n % 8 != 0) to[n / 8] = packed(switched_rest(codes + n / 8 * 8, n % 8, rule, Pack::kFill));
  }
};

// x_hat = code * scale + offset of codes from anywhere, switched before. A tile at a time, so that the processor reads,
// computes and, past the cache, writes at once: whole blocks in turn take half as long again. lines: null, or how whole
// lines go past the cache.
template <class Code>
struct Dequantize {
  static constexpr int64_t kTile = 256, kLine = 64 / sizeof(float);

  MBQ_HD void operator()(const uint8_t* __restrict codes, Switch rule, float scale, float offset,
                         float* __restrict out, int64_t n, StreamLines lines) const {
    alignas(64) uint64_t words[kTile / 8];
    alignas(64) float weights[kTile];
    int64_t m = std::min<int64_t>(n, lines ? -(reinterpret_cast<uintptr_t>(out) / sizeof(float)) % kLine : kTile);
    for (int64_t at = 0; at < n; at += m, m = std::min(kTile, n - at)) {
      const Code* from = reinterpret_cast<const Code*>(codes + at);
      if (rule.shift != 0) {
        SwitchFrom{}(codes + at, words, m, rule);
        from = reinterpret_cast<const Code*>(words);
      }
      float* to = lines ? weights : out + at;
      for (int64_t i = 0; i < m; ++i) to[i] = decode(static_cast<float>(from[i]), scale, offset);
      if (!lines) continue;
      const int64_t whole = on_line(out + at) ? m / kLine * kLine : 0;
      lines(reinterpret_cast<const char*>(weights), reinterpret_cast<char*>(out + at), whole * sizeof(float));
      std::memcpy(out + at + whole, weights + whole, (m - whole) * sizeof(float));
    }
  }
  MBQ_HD static bool on_line(const float* to) { return reinterpret_cast<uintptr_t>(to) % 64 == 0; }
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
  if (from == codes.values)
    run<SwitchChunk>(codes.words(), (n + 7) / 8, rule);
  else
    run<SwitchFrom>(reinterpret_cast<const uint8_t*>(from), codes.words(), n, rule);
  return codes.values;
}

// Writes n codes at (row, column), past the cache or not.
inline void write_codes(const Matrix<uint8_t>& to, int64_t row, int64_t column, int64_t n, const void* from,
                        bool past_cache) {
  uint8_t* target = to.at(row, column);
  past_cache ? stream(from, target, to.bytes_of(n)) : static_cast<void>(std::memcpy(target, from, to.bytes_of(n)));
}

// The same of codes that are switched and packed first.
inline void pack_block(const Matrix<uint8_t>& to, int64_t row, int64_t column, int64_t n, const int8_t* codes,
                       Switch rule, bool past_cache) {
  with_chunk<SwitchAndPack>(to.bits, to.is_signed, [&](auto chunk) {
    using Packed = typename decltype(chunk)::Packed;
    alignas(64) Packed packed[kBlock / 8];
    run<decltype(chunk)>(reinterpret_cast<const uint8_t*>(codes), static_cast<Packed*>(packed), n, rule);
    write_codes(to, row, column, n, packed, past_cache);
  });
}

// Writes n codes, which lie in `codes`, as planes at (row, column).
inline void split_block(const Matrix<uint8_t>& to, int64_t row, int64_t column, int64_t n, Codes& codes) {
  std::memset(codes.values + n, 0, (n + kPlaneCodes - 1) / kPlaneCodes * kPlaneCodes - n);
  split_planes(codes.bytes(), to.at(row, column), to.plane_bytes(), to.bits, to.bytes_of(n));
}

}  // namespace mbq
