// Rows of logits: visits of the walk over a row that keep its sums or write its gradient. Host code too, for the tests.
#pragma once

#include "math/softmax_math.h"
#include "walk.cuh"

namespace mbq::cuda {

// Of the classes but the target: maximum and sums below it; of all: the plain sum.
template <class T>
struct AddToRow {
  const T* x;
  int64_t target;  // its place in memory
  RowSums<float> sums = {};
  float plain = 0.0f;

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) {
    Pack<T, count> pack[batch];  // all loads first: they are then in flight together
#pragma unroll
    for (int b = 0; b < batch; ++b) pack[b] = load<T, count>(x + i + b * step);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      float value[count], top = sums.max;
#pragma unroll
      for (int j = 0; j < count; ++j) {
        value[j] = static_cast<float>(pack[b].at[j]);
        plain += value[j];
        if (i + b * step + j == target) value[j] = -INFINITY;
        top = value[j] > top ? value[j] : top;
      }
      sums.raise(top);
      const float base = sums.base();
#pragma unroll
      for (int j = 0; j < count; ++j) {
        const float e = exponential(value[j] - base);
        sums.sum += e;
        sums.squares += e * e;
      }
    }
  }
};

// What the gaps of a row need: top and log_sum, and the smoothing.
struct RowGaps {
  float top, log_sum, smoothing, uniform;
};

// The squares of the gaps of all classes but the target.
template <class T>
struct AddGaps {
  const T* x;
  int64_t target;
  RowGaps row;
  float squares = 0.0f;

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) {
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      const Pack<T, count> pack = load<T, count>(x + i + b * step);
#pragma unroll
      for (int j = 0; j < count; ++j) {
        const float gap = class_gap(static_cast<float>(pack.at[j]), row.top, row.log_sum, row.uniform);
        squares += i + b * step + j == target ? 0.0f : gap * gap;
      }
    }
  }
};

// grad_x = gap * grad; of_target: the target's gap
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
#pragma unroll
    for (int b = 0; b < batch; ++b) pack[b] = load<T, count>(x + i + b * step);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
#pragma unroll
      for (int j = 0; j < count; ++j) {
        const float gap = i + b * step + j == target
                              ? of_target
                              : class_gap(static_cast<float>(pack[b].at[j]), row.top, row.log_sum, row.uniform);
        pack[b].at[j] = static_cast<T>(counts ? gap * grad : 0.0f);
      }
      store(grad_x + i + b * step, pack[b]);
    }
  }
};

}  // namespace mbq::cuda
