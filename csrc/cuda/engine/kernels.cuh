// The kernels over elementwise.cuh: one launch over one x or over many.
#pragma once

#include "batch.cuh"
#include "elementwise.cuh"
#include "last_block.cuh"

namespace mbq::cuda {

// This thread's index among those of its item.
template <class Item, int capacity>
__device__ __forceinline__ int64_t thread_index(const Batch<Item, capacity>& batch, int item) {
  return static_cast<int64_t>(blockIdx.x - batch.first_block[item]) * blockDim.x + threadIdx.x;
}

template <template <class> class Quantizer, class T, class Out, int capacity>
__global__ void forward_kernel(const __grid_constant__ Batch<Job<Quantizer, T, Out>, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const Job<Quantizer, T, Out>& job = batch.items[item];
  const int64_t thread = thread_index(batch, item), task = job.walk.by_run ? thread / kWarpLanes : thread;
  if (task >= job.walk.tasks) return;
  Forward<Quantizer, T, Out> visit{job, job.walk.channel_of(task)};
  if (job.walk.by_run) {
    walk_run<kPack<Out>, 4>(job.walk, task, threadIdx.x % kWarpLanes, kWarpLanes, job.aligned, visit);
  } else {
    walk_column(job.walk, task, visit);
  }
}

template <template <class> class Quantizer, class T, class Grad, int slots, int capacity>
__global__ void backward_kernel(const __grid_constant__ Batch<Job<Quantizer, T, Grad>, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const Job<Quantizer, T, Grad>& job = batch.items[item];
  const int64_t thread = thread_index(batch, item), task = job.walk.by_run ? thread / kWarpLanes : thread;
  if (task >= job.walk.tasks) return;  // whole warps by run, so that the shuffles below are full
  Backward<Quantizer, T, Grad, slots> visit(job, job.walk.channel_of(task));
  if (job.walk.by_run) {
    const int lane = threadIdx.x % kWarpLanes;
    walk_run<kPack<T>, 2>(job.walk, task, lane, kWarpLanes, job.aligned, visit);
    visit.finish(task, lane == 0, [](double value) { return warp_sum(value); });
  } else {
    walk_column(job.walk, task, visit);
    visit.finish(task, true, [](double value) { return value; });
  }
}

// gradient[k][c] = factor[k] * the sum of the partial sums of level k and channel c; `lanes` threads for each, a warp
// or a block; over unit[k][c], unless null. together: for that many levels from k on, added in their order.
struct ChannelSum {
  Walk walk;
  int together, levels;
  const double* partial;  // levels x tasks
  float* gradient[kMaxLevels];
  const float* unit[kMaxLevels];
  double factor[kMaxLevels];

  MBQ_HD int64_t count() const { return levels / together * walk.channels; }
};

template <int lanes, int capacity>
__global__ void channel_sum_kernel(const __grid_constant__ Batch<ChannelSum, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const ChannelSum& sum = batch.items[item];
  const int64_t index = thread_index(batch, item) / lanes;
  if (index >= sum.count()) return;  // whole warps, or whole blocks
  const int64_t row = quotient(index, sum.walk.channels), k = row * sum.together;
  const int64_t channel = index - row * sum.walk.channels, count = sum.walk.sums_of_channel();
  double total = 0.0;
  for (int64_t level = k; level < k + sum.together; ++level) {
    const double* partial = sum.partial + level * sum.walk.tasks;
    double part = 0.0;
#pragma unroll 8  // so many loads are then in flight
    for (int64_t e = threadIdx.x % lanes; e < count; e += lanes)
      part += __ldg(partial + sum.walk.sum_index(channel, e));
    total += sum.factor[level] * part;
  }
  total = warp_sum(total);
  if constexpr (lanes > kWarpLanes) {
    __shared__ double warps[lanes / kWarpLanes];
    if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = total;
    __syncthreads();
    total = 0.0;
    for (int w = 0; w < lanes / kWarpLanes; ++w) total += warps[w];
  }
  if (threadIdx.x % lanes != 0) return;
  const float* unit = sum.unit[k];
  sum.gradient[k][channel] = static_cast<float>(unit != nullptr ? total / unit[channel] : total);
}

}  // namespace mbq::cuda
