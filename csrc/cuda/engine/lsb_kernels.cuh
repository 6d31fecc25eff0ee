// The kernels over lsb_visit.cuh. Sums of |B| are integers: exact in any order.
#pragma once

#include "kernels.cuh"
#include "lsb_visit.cuh"

namespace mbq::cuda {

// Blocks of a multiprocessor: as many as have registers without a stack.
template <LsbOut out, class T, int capacity>
constexpr int kLsbBlocks = capacity > 1 && sizeof(T) == 2                                ? 3
                           : capacity > 1 || (out == LsbOut::residual && sizeof(T) == 2) ? 4
                                                                                         : 5;
template <class T>
constexpr int kLsbGradientBlocks = sizeof(T) == 2 ? 4 : 5;

// Leaves the sums of a block; the last of `blocks` writes penalty and rate.
__device__ __forceinline__ void finish_counts(const LsbCounts& counts, unsigned block, unsigned blocks,
                                              const LsbSums& sums) {
  __shared__ unsigned warps[kTeamWarps];
  uint2* partial = reinterpret_cast<uint2*>(counts.partial);
  const unsigned both = static_cast<unsigned>(sums.size) << 16 | static_cast<unsigned>(sums.nonzero);
  const unsigned warp = __reduce_add_sync(kFullWarp, both);
  if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = warp;
  __syncthreads();
  if (threadIdx.x == 0) {
    uint2 total{};
#pragma unroll
    for (int w = 0; w < static_cast<int>(kTeamWarps); ++w) {
      total.x += warps[w] >> 16;
      total.y += warps[w] & 0xffff;
    }
    partial[block] = total;
  }
  if (!last_block(counts.counter, blocks)) return;
  unsigned long long size = 0, nonzero = 0;
  for (unsigned e = threadIdx.x; e < blocks; e += kTeamThreads) {
    const uint2 other = load_partial(partial + e);
    size += other.x;
    nonzero += other.y;
  }
  size = block_sum<kTeamThreads>(size);
  nonzero = block_sum<kTeamThreads>(nonzero);
  if (threadIdx.x != 0) return;
  *counts.penalty = static_cast<float>(size);
  *counts.rate = static_cast<float>(static_cast<double>(nonzero) / counts.numel);
}

template <LsbOut out, bool counts, class T, class Result, int capacity>
__global__ void __launch_bounds__(kTeamThreads, (kLsbBlocks<out, T, capacity>))
    round_clamp_kernel(const __grid_constant__ Batch<RoundClampJob<T, Result>, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const RoundClampJob<T, Result>& job = batch.items[item];
  const unsigned block = block_index(batch, item);
  constexpr int per_lane = kLsbBatch<out, T>;
  const Share share = job.tiles.template share<kLsbTile<per_lane, T>>(block, threadIdx.x);
  LsbSums sums;
  if (share.left > 0) {
    RoundClampVisit<out, counts, T, Result> visit(job, share.channel);
    walk_share<kPack<T>, per_lane, kPack<T>>(job.tiles, share, threadIdx.x % kWarpLanes, visit);
    sums = visit.sums;
  }
  if constexpr (counts) finish_counts(job.counts, block, batch.first_block[item + 1] - batch.first_block[item], sums);
}

template <bool task, class T, int capacity>
__global__ void __launch_bounds__(kTeamThreads, kLsbGradientBlocks<T>)
    lsb_gradient_kernel(const __grid_constant__ Batch<LsbGradientJob<T>, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const LsbGradientJob<T>& job = batch.items[item];
  constexpr int per_lane = kLsbGradientBatch<task, T>;
  const Share share = job.tiles.template share<kLsbTile<per_lane, T>>(block_index(batch, item), threadIdx.x);
  if (share.left == 0) return;
  LsbGradientVisit<task, T> visit(job, share.channel);
  walk_share<kPack<T>, per_lane, kPack<T>>(job.tiles, share, threadIdx.x % kWarpLanes, visit);
}

}  // namespace mbq::cuda
