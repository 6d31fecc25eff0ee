// Products of float32 rows with int8 codes that are in the first-level cache, a tile of both in registers. The order of
// every sum is fixed by the lanes and the pieces alone: tiles of any size give the same bits.
//
// 64 codes are 16 words of four. Shifts take the first code out of all words at once, then the second: so the rows of
// floats are kept in that order too (word_order), and no instruction set needs to widen bytes.
#pragma once

#include <cstring>

#include "math/quant_math.h"

namespace mbq {

constexpr int64_t kBlock64 = 64;
constexpr int kLanes16 = 16;
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t Words __attribute__((vector_size(64)));

// Where column k is in the order of the words.
MBQ_HD int64_t word_order(int64_t k) {
  const int64_t in = k % kBlock64;
  return k - in + in % 4 * kLanes16 + in / 4;
}

// Code `byte` of every word, in float.
MBQ_HD void codes_of(const Words& words, int byte, Lanes* codes) {
  *codes = __builtin_convertvector((words << (24 - 8 * byte)) >> 24, Lanes);
}

MBQ_HD void add_to(float* sums, const Lanes& more) {
  Lanes sum;
  std::memcpy(&sum, sums, sizeof(Lanes));
  sum += more;
  std::memcpy(sums, &sum, sizeof(Lanes));
}

// The rows of codes, or of bit planes, that come next: their cache lines are fetched while others are summed, one line
// of every row for 64 codes, so that memory is never idle. The processor does not see rows in pieces coming.
struct NextRows {
  const char* from;
  int64_t row_stride, plane_stride;
  int planes;  // 0: codes

  MBQ_HD void fetch(int64_t rows, int64_t column) const {
    const int64_t line = column / 64, plane = line % 8;
    const char* at = from + (planes == 0 ? line * 64 : plane < planes ? plane * plane_stride + line / 8 * 64 : 0);
    for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(at + r * row_stride);
  }

  MBQ_HD NextRows below(int64_t rows) const { return {from + rows * row_stride, row_stride, plane_stride, planes}; }

  // The same from `columns`, a multiple of 512, later on.
  MBQ_HD NextRows after(int64_t columns) const {
    return {from + (planes == 0 ? columns : columns / 8), row_stride, plane_stride, planes};
  }
};

// For products with the same codes again.
struct NoRows {
  MBQ_HD void fetch(int64_t, int64_t) const {}
};

// sums[r * sum_stride + m] (16 lanes) += codes[r] x[m] over n columns, a multiple of 64, x in the order of the words
template <int rows, int batch, class Next>
struct DotTile {
  MBQ_HD void operator()(const int8_t* codes, int64_t code_stride, const float* x, int64_t x_stride, int64_t n,
                         float* sums, int64_t sum_stride, Next next) const {
    Lanes sum[rows][batch] = {};
    for (int64_t k = 0; k < n; k += kBlock64) {
      next.fetch(rows, k);
      Words words[rows];
      for (int r = 0; r < rows; ++r) std::memcpy(&words[r], codes + r * code_stride + k, sizeof(Words));
#pragma GCC unroll 4
      for (int byte = 0; byte < 4; ++byte) {
        Lanes xs[batch];
        for (int m = 0; m < batch; ++m) std::memcpy(&xs[m], x + m * x_stride + k + byte * kLanes16, sizeof(Lanes));
        for (int r = 0; r < rows; ++r) {
          Lanes code;
          codes_of(words[r], byte, &code);
          for (int m = 0; m < batch; ++m) sum[r][m] += code * xs[m];
        }
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int m = 0; m < batch; ++m) add_to(sums + (r * sum_stride + m) * kLanes16, sum[r][m]);
  }
};

// sums[m] += grad[r][m] codes[r] over the rows r, for 64 columns, sums in the order of the words
template <int batch>
struct OuterTile {
  MBQ_HD void operator()(const int8_t* codes, int64_t code_stride, const float* grad, int64_t grad_stride, int64_t rows,
                         float* sums, int64_t sum_stride) const {
    Lanes sum[batch][4] = {};
    for (int64_t r = 0; r < rows; ++r) {
      Words words;
      std::memcpy(&words, codes + r * code_stride, sizeof(Words));
#pragma GCC unroll 4
      for (int byte = 0; byte < 4; ++byte) {
        Lanes code;
        codes_of(words, byte, &code);
        for (int m = 0; m < batch; ++m) sum[m][byte] += code * grad[r * grad_stride + m];
      }
    }
    for (int m = 0; m < batch; ++m)
      for (int byte = 0; byte < 4; ++byte) add_to(sums + m * sum_stride + byte * kLanes16, sum[m][byte]);
  }
};

}  // namespace mbq
