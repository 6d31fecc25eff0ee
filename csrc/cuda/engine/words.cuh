// The GPU loop over words of eight codes: what packing and planes do with a word, and with kWords at once.
//
// All of this is host code too: the tests run it there with any number of threads a block. The kernel is in
// word_kernels.cuh.
#pragma once

#include "math/code_math.h"
#include "walk.cuh"

namespace mbq::cuda {

constexpr int kWords = 16;  // of a thread: 128 codes

// Words that a thread takes at once are as many as fill 16 bytes of what it stores: the stores of a warp then lie side
// by side. (The parts of longer loads meet in the first-level cache; those of stores do not.)

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

// The words of one block, body.kTake neighbours at once where all are whole and aligned, else one after the other.
template <class Body>
MBQ_HD void walk_words(const Words& words, int64_t block, int thread, int threads, const Body& body) {
  const int64_t begin = block * threads * kWords, end = begin + static_cast<int64_t>(threads) * kWords;
  if (words.aligned && end <= words.rows * words.n / 8) {
    constexpr int parts = kWords / Body::kTake, batch = parts < Body::kBatch ? parts : Body::kBatch;
    const int64_t step = static_cast<int64_t>(threads) * Body::kTake;
    for (int part = 0; part < parts; part += batch)
      body.template many<batch>(begin + part * step + static_cast<int64_t>(thread) * Body::kTake, step);
    return;
  }
  const int64_t last = end < words.count() ? end : words.count();
  for (int64_t word = begin + thread; word < last; word += threads) body.one(word);
}

template <int bits, bool is_signed>
struct PackWords {
  static constexpr int kTake = 16 / bits, kBatch = kWords / kTake;
  Words words;
  const uint8_t* from;
  uint8_t* to;

  MBQ_HD static uint64_t packed(uint64_t codes) {
    // of signed 1 bit the sign alone counts
    if (!(is_signed && bits == 1)) codes = clamp_bytes(codes, bounds<int>(bits, is_signed), is_signed);
    return gather_fields(to_fields(codes, bits, is_signed), bits);
  }

  template <int batch>
  MBQ_HD void many(int64_t word, int64_t step) const {
    using Packed = packed_word_t<bits>;
    Pack<uint64_t, kTake> codes[batch];  // all loads first: they are then in flight together
#pragma unroll
    for (int b = 0; b < batch; ++b)
      codes[b] = load<uint64_t, kTake>(reinterpret_cast<const uint64_t*>(from) + word + b * step);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      Pack<Packed, kTake> out;
#pragma unroll
      for (int w = 0; w < kTake; ++w) out.at[w] = static_cast<Packed>(packed(codes[b].at[w]));
      store(reinterpret_cast<Packed*>(to) + word + b * step, out);
    }
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
  static constexpr int kTake = 2, kBatch = 8;
  Words words;
  const uint8_t* from;
  uint8_t* to;

  MBQ_HD static uint64_t codes(uint64_t packed) { return from_fields(spread_fields(packed, bits), bits, is_signed); }

  template <int batch>
  MBQ_HD void many(int64_t word, int64_t step) const {
    using Packed = packed_word_t<bits>;
    Pack<Packed, kTake> packed[batch];
#pragma unroll
    for (int b = 0; b < batch; ++b)
      packed[b] = load<Packed, kTake>(reinterpret_cast<const Packed*>(from) + word + b * step);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      Pack<uint64_t, kTake> out;
#pragma unroll
      for (int w = 0; w < kTake; ++w) out.at[w] = codes(packed[b].at[w]);
      store(reinterpret_cast<uint64_t*>(to) + word + b * step, out);
    }
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
  static constexpr int kTake = kWords, kBatch = 1;
  Words words;
  const uint8_t* from;
  uint8_t* to;

  MBQ_HD static uint64_t split(uint64_t codes) {
    if (planes < 8) codes = clamp_bytes(codes, bounds<int>(planes, true), true);
    return transpose_bits(codes);
  }

  template <int batch>
  MBQ_HD void many(int64_t word, int64_t) const {
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
  static constexpr int kTake = 2, kBatch = 4;
  Words words;
  const uint8_t* from;
  uint8_t* to;
  bool half_even;

  // Byte `byte` of every plane, and what its eight codes are.
  template <class Word>
  MBQ_HD static uint64_t codes(const Word* rounded, int byte) {
    uint64_t word = 0;
#pragma unroll
    for (int p = 0; p < bits; ++p)
      word |= static_cast<uint64_t>(rounded[p] >> (8 * byte) & 255) << (8 * (bits - 1 - p));
    return codes_of_planes(word, bits, true);
  }

  template <int batch>
  MBQ_HD void many(int64_t word, int64_t step) const {
    uint32_t plane[batch][8] = {};  // of which two bytes are used
#pragma unroll
    for (int b = 0; b < batch; ++b) {
#pragma unroll
      for (int p = 0; p < planes; ++p) {
        const Pack<uint8_t, kTake> bytes = load<uint8_t, kTake>(from + p * words.count() + word + b * step);
        plane[b][p] = bytes.at[0] | static_cast<uint32_t>(bytes.at[1]) << 8;
      }
    }
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      round_planes(plane[b], bits, planes, half_even);
      Pack<uint64_t, kTake> out;
#pragma unroll
      for (int w = 0; w < kTake; ++w) out.at[w] = codes(plane[b], w);
      store(reinterpret_cast<uint64_t*>(to) + word + b * step, out);
    }
  }

  MBQ_HD void one(int64_t word) const {
    uint64_t rounded[8] = {};
    for (int p = 0; p < planes; ++p) rounded[p] = from[p * words.count() + word];
    round_planes(rounded, bits, planes, half_even);
    write_bytes(to + words.first_code(word), codes(rounded, 0), words.codes_in(word));
  }
};

}  // namespace mbq::cuda
