// The GPU loop over words of eight codes: what packing and planes do with a word, and with kWords at once.
//
// All of this is host code too: the tests run it there with any number of threads a block. The kernel is in
// word_kernels.cuh.
#pragma once

#include "../code_math.h"
#include "walk.cuh"

namespace mbq {

constexpr int kWords = 16;  // a thread takes at once: 128 codes, 16 bytes of every plane

// Rows of n codes in words of eight; the last word of a row may be short. aligned: every pointer, and every plane, is
// on 16 bytes and no row but the last ends within a word.
struct Words {
  int64_t rows, n;
  bool aligned;

  MBQ_HD int64_t in_row() const { return (n + 7) / 8; }
  MBQ_HD int64_t count() const { return rows * in_row(); }
  MBQ_HD int64_t row_of(int64_t word) const { return word / in_row(); }
  MBQ_HD int64_t first_code(int64_t word) const { return row_of(word) * n + word % in_row() * 8; }
  MBQ_HD int codes_in(int64_t word) const {
    const int64_t left = n - word % in_row() * 8;
    return static_cast<int>(left < 8 ? left : 8);
  }
};

MBQ_HD uint64_t read_bytes(const uint8_t* from, int count) {
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) word |= i < count ? static_cast<uint64_t>(from[i]) << (8 * i) : 0;
  return word;
}

MBQ_HD void write_bytes(uint8_t* to, uint64_t word, int count) {
  for (int i = 0; i < 8; ++i)
    if (i < count) to[i] = static_cast<uint8_t>(word >> (8 * i));
}

// The words of one block: kWords neighbours a thread where all are whole and aligned, else one after the other.
template <class Body>
MBQ_HD void walk_words(const Words& words, int64_t block, int thread, int threads, const Body& body) {
  const int64_t begin = block * threads * kWords, end = begin + static_cast<int64_t>(threads) * kWords;
  if (words.aligned && end <= words.rows * words.n / 8) return body.many(begin + static_cast<int64_t>(thread) * kWords);
  const int64_t last = end < words.count() ? end : words.count();
  for (int64_t word = begin + thread; word < last; word += threads) body.one(word);
}

template <int bits, bool is_signed>
struct PackWords {
  static constexpr int kBits = bits;
  Words words;
  const uint8_t* from;
  uint8_t* to;

  MBQ_HD static uint64_t packed(uint64_t codes) {
    // of signed 1 bit the sign alone counts
    if (!(is_signed && bits == 1)) codes = clamp_bytes(codes, bounds<int>(bits, is_signed), is_signed);
    return gather_fields(to_fields(codes, bits, is_signed), bits);
  }

  MBQ_HD void many(int64_t word) const {
    using Packed = packed_word_t<bits>;
    const Pack<uint64_t, kWords> codes = load<uint64_t, kWords>(reinterpret_cast<const uint64_t*>(from) + word);
    Pack<Packed, kWords> out;
#pragma unroll
    for (int w = 0; w < kWords; ++w) out.at[w] = static_cast<Packed>(packed(codes.at[w]));
    store(reinterpret_cast<Packed*>(to) + word, out);
  }

  MBQ_HD void one(int64_t word) const {
    const int count = words.codes_in(word);
    const int64_t row_bytes = (words.n * bits + 7) / 8;
    uint64_t codes = read_bytes(from + words.first_code(word), count);
    if (is_signed && bits == 1 && count < 8) codes |= ~uint64_t{0} << (8 * count);  // codes whose field is 0
    write_bytes(to + words.row_of(word) * row_bytes + word % words.in_row() * bits, packed(codes),
                (count * bits + 7) / 8);
  }
};

template <int bits, bool is_signed>
struct UnpackWords {
  static constexpr int kBits = bits;
  Words words;
  const uint8_t* from;
  uint8_t* to;

  MBQ_HD static uint64_t codes(uint64_t packed) { return from_fields(spread_fields(packed, bits), bits, is_signed); }

  MBQ_HD void many(int64_t word) const {
    using Packed = packed_word_t<bits>;
    const Pack<Packed, kWords> packed = load<Packed, kWords>(reinterpret_cast<const Packed*>(from) + word);
    Pack<uint64_t, kWords> out;
#pragma unroll
    for (int w = 0; w < kWords; ++w) out.at[w] = codes(packed.at[w]);
    store(reinterpret_cast<uint64_t*>(to) + word, out);
  }

  MBQ_HD void one(int64_t word) const {
    const int count = words.codes_in(word);
    const int64_t row_bytes = (words.n * bits + 7) / 8;
    const uint8_t* packed = from + words.row_of(word) * row_bytes + word % words.in_row() * bits;
    write_bytes(to + words.first_code(word), codes(read_bytes(packed, (count * bits + 7) / 8)), count);
  }
};

// Byte `word` of plane p holds bit planes - 1 - p of eight codes.
template <int planes>
struct SplitWords {
  Words words;
  const uint8_t* from;
  uint8_t* to;

  MBQ_HD static uint64_t split(uint64_t codes) {
    if (planes < 8) codes = clamp_bytes(codes, bounds<int>(planes, true), true);
    return transpose_bits(codes);
  }

  MBQ_HD void many(int64_t word) const {
    Pack<uint64_t, kWords> codes = load<uint64_t, kWords>(reinterpret_cast<const uint64_t*>(from) + word);
#pragma unroll
    for (int w = 0; w < kWords; ++w) codes.at[w] = split(codes.at[w]);
#pragma unroll
    for (int p = 0; p < planes; ++p) {
      Pack<uint8_t, kWords> plane;
#pragma unroll
      for (int w = 0; w < kWords; ++w) plane.at[w] = static_cast<uint8_t>(codes.at[w] >> (8 * (planes - 1 - p)));
      store(to + p * words.count() + word, plane);
    }
  }

  MBQ_HD void one(int64_t word) const {
    const uint64_t bits = split(read_bytes(from + words.first_code(word), words.codes_in(word)));
    for (int p = 0; p < planes; ++p)
      to[p * words.count() + word] = static_cast<uint8_t>(bits >> (8 * (planes - 1 - p)));
  }
};

// Codes of `bits` bits from as many planes, or from more that are rounded.
template <int bits, int planes>
struct JoinWords {
  Words words;
  const uint8_t* from;
  uint8_t* to;
  bool half_even;

  // Byte `byte` of every plane, and what its eight codes are.
  MBQ_HD static uint64_t codes(const uint64_t* rounded, int byte) {
    uint64_t word = 0;
#pragma unroll
    for (int p = 0; p < bits; ++p) word |= (rounded[p] >> (8 * byte) & 255) << (8 * (bits - 1 - p));
    return codes_of_planes(word, bits, true);
  }

  MBQ_HD void many(int64_t word) const {
    Pack<uint64_t, 2> plane[planes];
#pragma unroll
    for (int p = 0; p < planes; ++p)
      plane[p] = load<uint64_t, 2>(reinterpret_cast<const uint64_t*>(from + p * words.count() + word));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint64_t rounded[8] = {};
#pragma unroll
      for (int p = 0; p < planes; ++p) rounded[p] = plane[p].at[half];
      round_planes(rounded, bits, planes, half_even);
      Pack<uint64_t, kWords / 2> out;
#pragma unroll
      for (int w = 0; w < kWords / 2; ++w) out.at[w] = codes(rounded, w);
      store(reinterpret_cast<uint64_t*>(to) + word + half * kWords / 2, out);
    }
  }

  MBQ_HD void one(int64_t word) const {
    uint64_t rounded[8] = {};
    for (int p = 0; p < planes; ++p) rounded[p] = from[p * words.count() + word];
    round_planes(rounded, bits, planes, half_even);
    write_bytes(to + words.first_code(word), codes(rounded, 0), words.codes_in(word));
  }
};

}  // namespace mbq
