// Rows of logits: visits of the walk over a row that keep its sums or write its gradient. Host code too, for the tests.
#pragma once

#include "math/softmax_math.h"
#include "packs.cuh"

namespace mbq::cuda {

// Puts `value` where `at` is, if that is one of them: one question for all, because a row has one target.
template <int count>
MBQ_HD void put_at(float (&values)[count], int64_t at, float value) {
  if (static_cast<uint64_t>(at) >= static_cast<uint64_t>(count)) return;
#pragma unroll
  for (int j = 0; j < count; ++j)
    if (j == static_cast<int>(at)) values[j] = value;
}

// Of the classes but the target: maximum and sums below it; of all, if `smooth`: the plain sum.
template <class T, bool smooth>
struct AddToRow {
  const T* x;
  int64_t target;  // its place in memory
  RowSums<float> sums = {};
  float plain = 0.0f;

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) {
    Pack<T, count> pack[batch];
    load_batch(x + i, step, pack);
    float value[batch][count], top = sums.max;
#pragma unroll
    for (int b = 0; b < batch; ++b) {
#pragma unroll
      for (int j = 0; j < count; ++j) {
        value[b][j] = element(pack[b], j);
        if (smooth) plain += value[b][j];
      }
      put_at(value[b], target - i - b * step, -INFINITY);
#pragma unroll
      for (int j = 0; j < count; ++j) top = std::fmax(top, value[b][j]);  // NaN, which shows in the sums, is no maximum
    }
    sums.raise(top);
    const float base = sums.base();
#pragma unroll
    for (int b = 0; b < batch; ++b) {
#pragma unroll
      for (int j = 0; j < count; ++j) {
        const float e = exponential(value[b][j] - base);
        sums.sum += e;
        sums.squares = std::fma(e, e, sums.squares);
      }
    }
  }
};

// What the gaps of a row need: top and log_sum, and the smoothing.
struct RowGaps {
  float top, log_sum, smoothing, uniform;
};

// The gaps of some classes, of which the one at `at`, if it is there, is the target, with a gap of its own.
template <class T, int count>
MBQ_HD void gaps_of(const Pack<T, count>& pack, const RowGaps& row, int64_t at, float of_target, float (&gap)[count]) {
#pragma unroll
  for (int j = 0; j < count; ++j) gap[j] = class_gap(element(pack, j), row.top, row.log_sum, row.uniform);
  put_at(gap, at, of_target);
}

// The squares of the gaps of all classes but the target.
template <class T>
struct AddGaps {
  const T* x;
  int64_t target;
  RowGaps row;
  float squares = 0.0f;

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) {
    Pack<T, count> pack[batch];
    load_batch(x + i, step, pack);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      float gap[count];
      gaps_of(pack[b], row, target - i - b * step, 0.0f, gap);
#pragma unroll
      for (int j = 0; j < count; ++j) squares = std::fma(gap[j], gap[j], squares);
    }
  }
};

// grad_x = gap * grad, 0 where the row does not count; of_target: the target's gap
template <class T>
struct WriteGaps {
  const T* x;
  T* grad_x;
  int64_t target;
  RowGaps row;
  float grad, of_target;
  bool counts;

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) const {
    Pack<T, count> pack[batch];
    load_batch(x + i, step, pack);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      float gap[count];
      gaps_of(pack[b], row, target - i - b * step, of_target, gap);
#pragma unroll
      for (int j = 0; j < count; ++j) gap[j] = counts ? gap[j] * grad : 0.0f;
      store(grad_x + i + b * step, pack_of<T>(gap));
    }
  }
};

}  // namespace mbq::cuda
