// Products of rows of x with rows of a stored weight, 32 codes a lane at a time. Host code too: the tests run it there.
#pragma once

#include "math/code_math.h"
#include "walk.cuh"

namespace mbq::cuda {

constexpr int kCodes = 32;  // of a lane: two 16-byte accesses to codes, a word of each plane

// A weight of int8 codes, or of bit planes (the sign first) where planes > 0.
struct StoredRows {
  const uint8_t* store;
  int64_t rows, columns, row_bytes;
  int planes, high_bits, bits;
  Switch lower;
  bool aligned;  // 16 bytes for codes, 4 for planes: the store, and the length of a row

  // Codes outside high_bits are clamped: here nobody can raise an error.
  MBQ_HD int switched(int code) const {
    const int top = 1 << (high_bits - 1);
    return switch_code(clamp(code, -top, top - 1), lower);
  }

  MBQ_HD uint32_t word(int p, int64_t row, int64_t column) const {
    const int64_t at = (p * rows + row) * row_bytes + column / 8, left = row_bytes - column / 8;
    if (aligned) return *reinterpret_cast<const uint32_t*>(store + at);
    uint32_t bits = 0;
    for (int byte = 0; byte < 4; ++byte)
      if (byte < left) bits |= static_cast<uint32_t>(store[at + byte]) << (8 * byte);
    return bits;
  }

  MBQ_HD void read_planes(int64_t row, int64_t column, float* codes) const {
    uint32_t plane[8] = {};
    MBQ_UNROLL_8
    for (int p = 0; p < 8; ++p)
      if (p < planes) plane[p] = word(p, row, column);
    round_planes(plane, bits, planes, lower.odd != 0);
#pragma unroll
    for (int j = 0; j < kCodes; ++j) {
      int code = -static_cast<int>(plane[0] >> j & 1);
      MBQ_UNROLL_8
      for (int p = 1; p < 8; ++p)
        if (p < bits) code = 2 * code + static_cast<int>(plane[p] >> j & 1);
      codes[j] = static_cast<float>(code);
    }
  }

  // codes[j] = code of the bit-width in use at column + j, a multiple of 32; anything finite behind the row's end
  MBQ_HD void read(int64_t row, int64_t column, float* codes) const {
    if (planes > 0) return read_planes(row, column, codes);
    const int8_t* from = reinterpret_cast<const int8_t*>(store) + row * row_bytes + column;
    Pack<int8_t, kCodes> pack;
    if (aligned && column + kCodes <= columns) {
      pack = load<int8_t, kCodes>(from);
    } else {
#pragma unroll
      for (int j = 0; j < kCodes; ++j) pack.at[j] = column + j < columns ? from[j] : 0;
    }
#pragma unroll
    for (int j = 0; j < kCodes; ++j) codes[j] = static_cast<float>(switched(pack.at[j]));
  }

  MBQ_HD float at(int64_t row, int64_t column) const {
    if (planes == 0) return static_cast<float>(switched(static_cast<int8_t>(store[row * row_bytes + column])));
    uint32_t plane[8] = {};
    MBQ_UNROLL_8
    for (int p = 0; p < 8; ++p)
      if (p < planes) plane[p] = store[(p * rows + row) * row_bytes + column / 8] >> (column % 8) & 1;
    round_planes(plane, bits, planes, lower.odd != 0);
    int code = -static_cast<int>(plane[0] & 1);
    MBQ_UNROLL_8
    for (int p = 1; p < 8; ++p)
      if (p < bits) code = 2 * code + static_cast<int>(plane[p] & 1);
    return static_cast<float>(code);
  }
};

// sums[m] = the lane's part of x[m] . codes[row], for `batch` rows of x from `first` on
template <int batch, class T>
MBQ_HD void dot_row(const StoredRows& weight, int64_t row, const T* x, int64_t first, int64_t count, int lane,
                    int lanes, float* sums) {
  for (int64_t k = static_cast<int64_t>(lane) * kCodes; k < weight.columns; k += static_cast<int64_t>(lanes) * kCodes) {
    float codes[kCodes];
    weight.read(row, k, codes);
#pragma unroll
    for (int m = 0; m < batch; ++m) {
      if (first + m >= count) break;
      const T* from = x + (first + m) * weight.columns + k;
#pragma unroll
      for (int j = 0; j < kCodes; ++j)
        if (k + j < weight.columns) sums[m] += codes[j] * static_cast<float>(from[j]);
    }
  }
}

// grad_x[m][column] for `batch` rows of the gradient from `first` on
template <int batch, class T>
MBQ_HD void dot_column(const StoredRows& weight, int64_t column, const float* scale, bool one_scale, const T* grad,
                       int64_t first, int64_t count, T* grad_x) {
  const float step = static_cast<float>(1 << weight.lower.shift);
  float sums[batch] = {};
  for (int64_t row = 0; row < weight.rows; ++row) {
    const float value = weight.at(row, column) * (scale[one_scale ? 0 : row] * step);
#pragma unroll
    for (int m = 0; m < batch; ++m)
      if (first + m < count) sums[m] += value * static_cast<float>(grad[(first + m) * weight.rows + row]);
  }
#pragma unroll
  for (int m = 0; m < batch; ++m)
    if (first + m < count) grad_x[(first + m) * weight.columns + column] = static_cast<T>(sums[m]);
}

}  // namespace mbq::cuda
