// The kernels over elementwise.cuh: one launch over one x or over many.
#pragma once

#include "batch.cuh"
#include "channel_sums.cuh"

namespace mbq::cuda {

// This block's index among those of its item.
template <class Item, int capacity>
__device__ __forceinline__ unsigned block_index(const Batch<Item, capacity>& batch, int item) {
  return capacity == 1 ? blockIdx.x : blockIdx.x - batch.first_block[item];
}

// This thread's index among those of its item.
template <class Item, int capacity>
__device__ __forceinline__ int64_t thread_index(const Batch<Item, capacity>& batch, int item) {
  return static_cast<int64_t>(blockIdx.x - batch.first_block[item]) * blockDim.x + threadIdx.x;
}

// Blocks of a multiprocessor: as many as registers for the loads of a tile leave room for.
constexpr int blocks_at_once(int slots, bool plain) { return (slots == 1 ? 4 : slots <= 4 ? 3 : 2) + plain; }

template <class Job, bool plain, int capacity>
__global__ void __launch_bounds__(kTeamThreads, blocks_at_once(Job::kSlots, plain))
    forward_kernel(const __grid_constant__ Batch<Job, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const Job& job = batch.items[item];
  const Share share = job.tiles.template share<Job::kTile>(block_index(batch, item), threadIdx.x);
  if (share.left == 0) return;
  Forward<Job, plain> visit(job, share.channel);
  walk_share<Job::kWidth, Job::kInFlight, Job::kRest>(job.tiles, share, threadIdx.x % kWarpLanes, visit);
}

// Writes the partial sums of a block's rows, of a wide team, or of its warps.
template <class Visit>
__device__ __forceinline__ void write_team_sums(const Visit& visit, const Share& share) {
  constexpr int slots = Visit::slots;
  __shared__ float warps[2 * slots][kTeamWarps];
  const auto& job = visit.job;
  const bool writes = threadIdx.x % kWarpLanes == 0 && share.team < job.tiles.teams;
#pragma unroll
  for (int k = 0; k < slots; ++k) {
    if (!job.has(k)) break;
#pragma unroll
    for (int which = 0; which < (Visit::kPlain ? 1 : 2); ++which) {
      if (which == 1 && !job.shifted()) break;
      const float sum = warp_sum(which == 0 ? visit.to_scale[k] : visit.to_shift[k]);
      const int row = which * job.levels + k;
      if (job.tiles.wide) {
        if (writes) warps[row][threadIdx.x / kWarpLanes] = sum;
      } else if (writes) {
        job.partials(row)[share.team] = sum;
      }
    }
  }
  if (!job.tiles.wide) return;
  __syncthreads();
  if (threadIdx.x >= job.rows()) return;
  double total = 0.0;
#pragma unroll
  for (unsigned w = 0; w < kTeamWarps; ++w) total += static_cast<double>(warps[threadIdx.x][w]);
  job.partials(threadIdx.x)[share.team] = total;
}

// By run: the team with a channel's last ticket writes its gradients.
template <class Visit>
__device__ __forceinline__ void finish_run(const Visit& visit, const Share& share) {
  const auto& job = visit.job;
  write_team_sums(visit, share);
  if (share.team >= job.tiles.teams) return;  // whole warps
  const unsigned count = job.tiles.sums_of_channel();
  const bool wide = job.tiles.wide;
  if (count == 1) {
    wide ? __syncthreads() : __syncwarp();
  } else if (!(wide ? last_block(job.counters + share.channel, count) : last_warp(job.counters + share.channel, count))) {
    return;
  }
  const unsigned lanes = wide ? kTeamThreads : kWarpLanes, lane = threadIdx.x % lanes;
  double carried = 0.0;
#pragma unroll 1
  for (int row = 0; row < job.rows(); ++row) {
    const double part = job.share_of_sum(row, share.channel, lane, lanes);
    const double sum = wide ? block_sum<kTeamThreads>(part) : warp_sum(part);
    if (lane == 0) job.write_gradient(row, share.channel, sum, carried);
  }
}

// By column: the block with a strip's last ticket writes the gradients of its channels.
template <class Visit>
__device__ __forceinline__ void finish_column(const Visit& visit, unsigned block) {
  constexpr int slots = Visit::slots;
  __shared__ float values[kTeamThreads];
  __shared__ double parts[kTeamThreads];
  const auto& job = visit.job;
  const Strip strip(job.tiles, block);
  const bool writes = threadIdx.x < strip.channels;
#pragma unroll
  for (int k = 0; k < slots; ++k) {
    if (!job.has(k)) break;
#pragma unroll
    for (int which = 0; which < (Visit::kPlain ? 1 : 2); ++which) {
      if (which == 1 && !job.shifted()) break;
      __syncthreads();
      values[threadIdx.x] = which == 0 ? visit.to_scale[k] : visit.to_shift[k];
      __syncthreads();
      if (writes) strip.write_partial(job.partials(which * job.levels + k), values, threadIdx.x);
    }
  }
  if (job.tiles.repeats > 1 && !last_block(job.counters + strip.at, job.tiles.repeats)) return;
  double carried = 0.0;
#pragma unroll 1
  for (int row = 0; row < job.rows(); ++row) {
    __syncthreads();
    parts[threadIdx.x] = strip.part(job, row, threadIdx.x);
    __syncthreads();
    if (writes) job.write_gradient(row, strip.first + threadIdx.x, strip.total(parts, threadIdx.x), carried);
  }
}

template <class Job, bool plain, int capacity>
__global__ void __launch_bounds__(kTeamThreads, blocks_at_once(Job::kSlots, plain))
    backward_kernel(const __grid_constant__ Batch<Job, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const Job& job = batch.items[item];
  const unsigned block = block_index(batch, item);
  const Share share = job.tiles.template share<Job::kTile>(block, threadIdx.x);
  Backward<Job, plain> visit(job, share.channel);
  walk_share<Job::kWidth, Job::kInFlight, Job::kRest>(job.tiles, share, threadIdx.x % kWarpLanes, visit);
  if (job.tiles.by_run) {
    finish_run(visit, share);
  } else {
    finish_column(visit, block);
  }
}

}  // namespace mbq::cuda
