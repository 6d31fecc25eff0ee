// The GPU loop of every elementwise op with per-channel parameters: channel indexing, 16-byte access with tails, sums.
//
// Two walks cover all dense layouts. By run: the `inner` elements of one channel lie together; a warp takes a chunk of
// a run, in 16-byte accesses between a head and a tail. By column: they do not (channels_last); a thread takes a column
// and goes down a group of rows, neighbours read neighbours. One read of x serves every bit-width. Sums go in two
// stages, per chunk or column and then per channel, in a fixed order and without atomics: results repeat.
//
// Everything but the __global__ functions is host code too: the tests run it there with one lane a warp.
#pragma once

#include "walk.cuh"

namespace mbq {

constexpr int kMaxLevels = 8;

// What a launch works on: K quantizers over x. shift is null where there are none.
template <template <class> class Quantizer, class T, class Other>
struct Job {
  Walk walk;
  bool aligned;
  int levels;
  Quantizer<float> quantizer[kMaxLevels];
  const float* scale;
  const float* shift;
  const T* x;
  Other* out[kMaxLevels];         // forward
  const Other* grad[kMaxLevels];  // backward
  T* grad_x;
  double* scale_sums;  // levels x tasks
  double* shift_sums;

  MBQ_HD float scale_at(int k, int64_t channel) const { return scale[k * walk.channels + channel]; }
  MBQ_HD float shift_at(int k, int64_t channel) const { return shift ? shift[k * walk.channels + channel] : 0.0f; }
};

// out[k] = x through quantizer k
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
        store(job.out[k] + i + b * step, out);
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
      for (int b = 0; b < batch; ++b) grad[b] = load<Grad, count>(job.grad[k] + i + b * step);
#pragma unroll
      for (int b = 0; b < batch; ++b) {
#pragma unroll
        for (int j = 0; j < count; ++j) {
          const Terms<float> terms = job.quantizer[k].terms(static_cast<float>(grad[b].at[j]),
                                                            static_cast<float>(x[b].at[j]), scale[k], shift[k]);
          sum[b][j] += terms.x;
          to_scale[k] += terms.scale;
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
      if (!job.shift) continue;
      const double shift_sum = reduce(to_shift[k]);
      if (writes) job.shift_sums[k * job.walk.tasks + task] = shift_sum;
    }
  }
};

#if defined(__CUDACC__)

constexpr int kWarpLanes = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// A sum over the warp in a fixed tree; every lane gets it.
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int offset = kWarpLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

template <template <class> class Quantizer, class T, class Out>
__global__ void forward_kernel(const __grid_constant__ Job<Quantizer, T, Out> job) {
  const int64_t task = job.walk.by_run ? thread_index() / kWarpLanes : thread_index();
  if (task >= job.walk.tasks) return;
  Forward<Quantizer, T, Out> visit{job, job.walk.channel_of(task)};
  if (job.walk.by_run) {
    walk_run<kPack<T, Out>, 4>(job.walk, task, threadIdx.x % kWarpLanes, kWarpLanes, job.aligned, visit);
  } else {
    walk_column(job.walk, task, visit);
  }
}

template <template <class> class Quantizer, class T, class Grad, int slots>
__global__ void backward_kernel(const __grid_constant__ Job<Quantizer, T, Grad> job) {
  const int64_t task = job.walk.by_run ? thread_index() / kWarpLanes : thread_index();
  if (task >= job.walk.tasks) return;  // whole warps by run, so that the shuffles below are full
  Backward<Quantizer, T, Grad, slots> visit(job, job.walk.channel_of(task));
  if (job.walk.by_run) {
    const int lane = threadIdx.x % kWarpLanes;
    walk_run<kPack<T, Grad>, 2>(job.walk, task, lane, kWarpLanes, job.aligned, visit);
    visit.finish(task, lane == 0, [](double value) { return warp_sum(value); });
  } else {
    walk_column(job.walk, task, visit);
    visit.finish(task, true, [](double value) { return value; });
  }
}

// gradient[k, c] = factor[k] * the sum of the partial sums of level k and channel c; one block for each.
struct ChannelSum {
  Walk walk;
  const double* partial;  // levels x tasks
  float* gradient;        // levels x channels
  double factor[kMaxLevels];
};

template <int threads>
__global__ void channel_sum_kernel(const __grid_constant__ ChannelSum sum) {
  __shared__ double warps[threads / kWarpLanes];
  const int64_t k = blockIdx.x / sum.walk.channels, channel = blockIdx.x % sum.walk.channels;
  const double* partial = sum.partial + k * sum.walk.tasks;
  double total = 0.0;
  for (int64_t e = threadIdx.x; e < sum.walk.sums_of_channel(); e += threads)
    total += partial[sum.walk.sum_index(channel, e)];
  total = warp_sum(total);
  if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0.0;
  for (int w = 0; w < threads / kWarpLanes; ++w) all += warps[w];
  sum.gradient[blockIdx.x] = static_cast<float>(sum.factor[k] * all);
}

#endif  // __CUDACC__

}  // namespace mbq
