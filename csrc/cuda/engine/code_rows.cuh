// Products of rows of x with rows of a stored weight, 32 codes a lane at a time. Host code too: the tests run it there.
#pragma once

#include <cmath>

#include "code_pairs.cuh"
#include "math/code_math.h"
#include "packs.cuh"

namespace mbq::cuda {

constexpr int kCodes = 32;  // of a lane: two 16-byte accesses to codes, a word of each plane
constexpr int kGroup = 8;   // columns that follow each other in x: 16 bytes of 2-byte numbers

// A weight of int8 codes, or of bit planes (the sign first) where planes > 0.
struct StoredRows {
  const uint8_t* store;
  int64_t rows, columns, row_bytes;
  int planes;
  Switch lower;
  PairSwitch pairs;  // of codes as bytes(): planes fill a byte from above
  bool aligned;      // 16 bytes for codes, 4 for planes: the store, and the length of a row
  float step;        // what pairs make of a code is so many times smaller than code_l 2^D

  MBQ_HD StoredRows(const uint8_t* data, int64_t n, int64_t k, int64_t bytes, int count, int high_bits, int bits,
                    Switch s, bool on_words)
      : store(data),
        rows(n),
        columns(k),
        row_bytes(bytes),
        planes(count),
        lower(s),
        pairs(bounds<int>(count > 0 ? 8 : high_bits, true), switching(count > 0 ? 8 : high_bits, bits, s.odd != 0)),
        aligned(on_words),
        step(count > 0 ? 1.0f / static_cast<float>(1 << (8 - high_bits)) : 1.0f) {}

  // Four bytes of a plane, of which `left` are there
  template <bool whole>
  MBQ_HD static uint32_t word(const uint8_t* from, int64_t left) {
    if constexpr (whole) return load<uint32_t, 1>(reinterpret_cast<const uint32_t*>(from)).at[0];
    uint32_t bits = 0;
    for (int byte = 0; byte < 4; ++byte)
      if (byte < left) bits |= static_cast<uint32_t>(from[byte]) << (8 * byte);
    return bits;
  }

  // The codes at column to column + 31, a multiple of 32, one a byte; anything behind the row's end. Column j is in
  // byte j % 4 of word j / 4, of planes in byte j / 8 of word j % 8. whole: aligned, and all are there.
  template <bool of_planes, bool whole>
  MBQ_HD void bytes(int64_t row, int64_t column, uint32_t (&words)[kCodes / 4]) const {
    if constexpr (of_planes) {
      const uint8_t* from = store + row * row_bytes + column / 8;
      MBQ_UNROLL_8
      for (int p = 0; p < 8; ++p, from += rows * row_bytes)
        words[7 - p] = p < planes ? word<whole>(from, row_bytes - column / 8) : 0;
      transpose_words(words);
    } else {
      const uint8_t* from = store + row * row_bytes + column;
      Pack<uint8_t, kCodes> pack;
      if constexpr (whole) {
        pack = load<uint8_t, kCodes>(from);
      } else {
#pragma unroll
        for (int j = 0; j < kCodes; ++j) pack.at[j] = column + j < columns ? from[j] : 0;
      }
      memcpy(words, &pack, sizeof(words));
    }
  }

  // The same in pairs, switched: bytes 0 and 2 of word w in pair 2 w, 1 and 3 in pair 2 w + 1
  template <bool of_planes, bool whole>
  MBQ_HD void read(int64_t row, int64_t column, uint32_t (&codes)[kCodes / 2]) const {
    uint32_t words[kCodes / 4];
    bytes<of_planes, whole>(row, column, words);
#pragma unroll
    for (int w = 0; w < kCodes / 4; ++w) {
      codes[2 * w] = spread_bytes<false>(words[w] ^ 0x80808080u);
      codes[2 * w + 1] = spread_bytes<true>(words[w] ^ 0x80808080u);
    }
    switch_pairs(codes, pairs);
  }

  // code_l 2^D / step of column j of what read() left
  template <bool of_planes>
  MBQ_HD float code_at(const uint32_t (&codes)[kCodes / 2], int j) const {
    const int word = of_planes ? j % 8 : j / 4, byte = of_planes ? j / 8 : j % 4;
    return pairs.code_of(codes[2 * word + byte % 2], byte >= 2);
  }

  MBQ_HD float at(int64_t row, int64_t column) const {
    int code = 0;
    if (planes == 0) {
      code = static_cast<int8_t>(store[row * row_bytes + column]);
    } else {
      MBQ_UNROLL_8
      for (int p = 0; p < 8; ++p)
        if (p < planes) code |= (store[(p * rows + row) * row_bytes + column / 8] >> (column % 8) & 1) << (7 - p);
    }
    uint32_t pair[1] = {static_cast<uint32_t>(code ^ 0x80) & 0xFFu};
    switch_pairs(pair, pairs);
    return pairs.code_of(pair[0], false) * step;
  }
};

// Eight columns of a row of x; 0 behind its end.
template <bool whole, class T>
MBQ_HD void read_group(const T* from, int64_t left, float (&x)[kGroup]) {
  Pack<T, kGroup> pack;
  if constexpr (whole) {
    pack = load<T, kGroup>(from);
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) pack.at[j] = j < left ? from[j] : static_cast<T>(0.0f);
  }
#pragma unroll
  for (int j = 0; j < kGroup; ++j) x[j] = element(pack, j);
}

// A weight and rows of x; aligned: x, and the length of its rows, to 16 bytes.
template <class T>
struct RowProducts {
  StoredRows weight;
  const T* x;
  int64_t count;
  bool aligned;

  // Adds to sums[r * batch + m] the products of columns k to k + 31 (dot)
  template <int share, int batch, bool of_planes, bool whole>
  MBQ_HD void add(int64_t row, int64_t first, int64_t k, float* sums) const {
    uint32_t codes[share][kCodes / 2];
#pragma unroll
    for (int r = 0; r < share; ++r)
      weight.template read<of_planes, whole>(row + r < weight.rows ? row + r : row, k, codes[r]);
#pragma unroll
    for (int g = 0; g < kCodes; g += kGroup) {
#pragma unroll
      for (int m = 0; m < batch; ++m) {
        if (first + m >= count) break;
        float numbers[kGroup];
        read_group<whole>(x + (first + m) * weight.columns + k + g, weight.columns - k - g, numbers);
#pragma unroll
        for (int r = 0; r < share; ++r) {
#pragma unroll
          for (int j = 0; j < kGroup; ++j)
            sums[r * batch + m] =
                std::fmaf(weight.template code_at<of_planes>(codes[r], g + j), numbers[j], sums[r * batch + m]);
        }
      }
    }
  }

  // sums[r * batch + m] = the lane's part of x[first + m] . codes[row + r] / step, for `share` rows of the weight and
  // `batch` rows of x
  template <int share, int batch, bool of_planes>
  MBQ_HD void dot(int64_t row, int64_t first, int lane, int lanes, float* sums) const {
    const int64_t step = static_cast<int64_t>(lanes) * kCodes;
    int64_t k = static_cast<int64_t>(lane) * kCodes;
    if (weight.aligned && aligned)
      for (; k + kCodes <= weight.columns; k += step) add<share, batch, of_planes, true>(row, first, k, sums);
    for (; k < weight.columns; k += step) add<share, batch, of_planes, false>(row, first, k, sums);
  }
};

// grad_x[m][column] for `batch` rows of the gradient from `first` on
template <int batch, class T>
MBQ_HD void dot_column(const StoredRows& weight, int64_t column, const float* scale, bool one_scale, const T* grad,
                       int64_t first, int64_t count, T* grad_x) {
  float sums[batch] = {};
  for (int64_t row = 0; row < weight.rows; ++row) {
    const float value = weight.at(row, column) * scale[one_scale ? 0 : row];
#pragma unroll
    for (int m = 0; m < batch; ++m)
      if (first + m < count) sums[m] += value * static_cast<float>(grad[(first + m) * weight.rows + row]);
  }
#pragma unroll
  for (int m = 0; m < batch; ++m)
    if (first + m < count) grad_x[(first + m) * weight.columns + column] = static_cast<T>(sums[m]);
}

}  // namespace mbq::cuda
