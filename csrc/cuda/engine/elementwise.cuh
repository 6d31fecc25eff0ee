// The GPU loop of every elementwise op with per-channel parameters: channel indexing, 16-byte access with tails, sums.
//
// Two walks cover all dense layouts. By run: the `inner` elements of one channel lie together; a warp takes a chunk of
// a run, in 16-byte accesses between a head and a tail. By column: they do not (channels_last); a thread takes a column
// and goes down a group of rows, neighbours read neighbours. One read of x serves every bit-width. Sums go in two
// stages, per chunk or column and then per channel, in a fixed order and without atomics: results repeat.
//
// All of this is host code too: the tests run it there with one lane a warp. The kernels are in kernels.cuh.
#pragma once

#include "walk.cuh"

namespace mbq::cuda {

constexpr int kMaxLevels = 8;

// K quantizers over one x: `other` are K results forward, K upstream gradients backward. The parameters of every
// channel: scale[k][channel], in units of unit[k][channel] and at least floor[k][channel], and shift[k][channel];
// unit[0], floor[0] and shift[0] are null where there are none.
template <template <class> class Quantizer, class T, class Other>
struct Job {
  Walk walk;
  bool aligned;
  int levels;
  Quantizer<float> quantizer[kMaxLevels];
  const float* scale[kMaxLevels];
  const float* shift[kMaxLevels];
  const float* unit[kMaxLevels];
  const float* floor[kMaxLevels];
  const T* x;
  Other* other[kMaxLevels];
  T* grad_x;
  double* scale_sums;  // levels x tasks
  double* shift_sums;

  MBQ_HD bool shifted() const { return shift[0] != nullptr; }
  MBQ_HD float scale_at(int k, int64_t channel) const {
    return effective_scale(scale[k][channel], unit[0] != nullptr ? unit[k][channel] : 1.0f,
                           floor[0] != nullptr ? floor[k][channel] : -INFINITY);
  }
  MBQ_HD float shift_at(int k, int64_t channel) const { return shifted() ? shift[k][channel] : 0.0f; }
};

// other[k] = x through quantizer k
template <template <class> class Quantizer, class T, class Out>
struct Forward {
  const Job<Quantizer, T, Out>& job;
  int64_t channel;

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) const {
    Pack<T, count> x[batch];  // all loads first: they are then in flight together
#pragma unroll
    for (int b = 0; b < batch; ++b) x[b] = load<T, count>(job.x + i + b * step);
    for (int k = 0; k < job.levels; ++k) {
      const float scale = job.scale_at(k, channel), shift = job.shift_at(k, channel);
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        Pack<Out, count> out;
#pragma unroll
        for (int j = 0; j < count; ++j)
          out.at[j] = static_cast<Out>(job.quantizer[k].value(static_cast<float>(x[b].at[j]), scale, shift));
        store(job.other[k] + i + b * step, out);
      }
    }
  }
};

// grad_x = sum over k of the terms, added in float in the order of k; sums of the other terms stay with the lane.
// `slots` bounds job.levels at compile time, so that the sums are registers.
template <template <class> class Quantizer, class T, class Grad, int slots>
struct Backward {
  const Job<Quantizer, T, Grad>& job;
  float scale[slots], shift[slots], to_scale[slots], to_shift[slots];

  MBQ_HD Backward(const Job<Quantizer, T, Grad>& j, int64_t channel) : job(j) {
#pragma unroll
    for (int k = 0; k < slots; ++k) {
      const int level = k < job.levels ? k : 0;
      scale[k] = job.scale_at(level, channel);
      shift[k] = job.shift_at(level, channel);
      to_scale[k] = to_shift[k] = 0.0f;
    }
  }

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) {
    Pack<T, count> x[batch];
    float sum[batch][count] = {};
#pragma unroll
    for (int b = 0; b < batch; ++b) x[b] = load<T, count>(job.x + i + b * step);
#pragma unroll
    for (int k = 0; k < slots; ++k) {
      if (k >= job.levels) break;
      Pack<Grad, count> grad[batch];
#pragma unroll
      for (int b = 0; b < batch; ++b) grad[b] = load<Grad, count>(job.other[k] + i + b * step);
#pragma unroll
      for (int b = 0; b < batch; ++b) {
#pragma unroll
        for (int j = 0; j < count; ++j) {
          const Terms<float> terms = job.quantizer[k].terms(static_cast<float>(grad[b].at[j]),
                                                            static_cast<float>(x[b].at[j]), scale[k], shift[k]);
          sum[b][j] += terms.x;
          to_scale[k] = terms.scale_onto(to_scale[k]);
          to_shift[k] += terms.shift;
        }
      }
    }
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      Pack<T, count> grad_x;
#pragma unroll
      for (int j = 0; j < count; ++j) grad_x.at[j] = static_cast<T>(sum[b][j]);
      store(job.grad_x + i + b * step, grad_x);
    }
  }

  // Leaves the sums of the task, whose lanes hold theirs; `reduce` adds over the lanes and `writes` is true for one.
  template <class Reduce>
  MBQ_HD void finish(int64_t task, bool writes, const Reduce& reduce) const {
#pragma unroll
    for (int k = 0; k < slots; ++k) {
      if (k >= job.levels) break;
      const double scale_sum = reduce(to_scale[k]);
      if (writes) job.scale_sums[k * job.walk.tasks + task] = scale_sum;
      if (!job.shifted()) continue;
      const double shift_sum = reduce(to_shift[k]);
      if (writes) job.shift_sums[k * job.walk.tasks + task] = shift_sum;
    }
  }
};

}  // namespace mbq::cuda
