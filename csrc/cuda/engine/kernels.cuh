// The kernels over elementwise.cuh: one launch over one x or over many.
#pragma once

#include "batch.cuh"
#include "channel_sums.cuh"
#include "math/affine_math.h"

namespace mbq::cuda {

// This block's index among those of its item.
template <class Item, int capacity>
__device__ __forceinline__ unsigned block_index(const Batch<Item, capacity>& batch, int item) {
  return capacity == 1 ? blockIdx.x : blockIdx.x - batch.first_block[item];
}

// Blocks of a multiprocessor: as many as have registers without a stack. (For GPUs before Hopper nvcc needs more of
// them.)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kBlocksOfFourLevels = 3;
#else
constexpr int kBlocksOfFourLevels = 4;
#endif
// The general affine form divides, twice an element: what divisions out of the ordinary take wants registers.
template <class Job>
constexpr bool kDivides = std::is_same_v<decltype(Job::quantizer), GeneralAffine<float>[Job::kSlots]>;
template <class Job, bool plain, int capacity>
constexpr int blocks_at_once() {
  if (kDivides<Job> && sizeof(typename Job::Read) < 4) return 3;
  if (Job::kSlots > 4) return plain && capacity == 1 ? 4 : 2;
  if (Job::kSlots > 1) return plain ? (capacity == 1 ? 4 : kBlocksOfFourLevels) : capacity == 1 ? 3 : 2;
  return plain && (capacity == 1 || sizeof(typename Job::Others) > 2) ? 5 : 4;
}

template <class Job, bool plain, int capacity>
__global__ void __launch_bounds__(kTeamThreads, (blocks_at_once<Job, plain, capacity>()))
    forward_kernel(const __grid_constant__ Batch<Job, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const Job& job = batch.items[item];
  const Share share = job.tiles.template share<Job::kTile>(block_index(batch, item), threadIdx.x);
  if (share.left == 0) return;
  Forward<Job, plain> visit(job, share.channel);
  walk_share<Job::kWidth, Job::kInFlight, Job::kRest>(job.tiles, share, threadIdx.x % kWarpLanes, visit);
}

// What the threads of a block have summed, of every row of gradients.
template <class Visit>
using BlockSums = float[(Visit::kPlain ? 1 : 2) * Visit::slots][kTeamThreads];

// By run: writes the partial sums of teams. A block that is a team: warp w those of rows w, w + 8, ...; else each warp
// its own.
template <class Job>
__device__ __forceinline__ void write_team_sums(const Job& job, const Share& share, const float (*sums)[kTeamThreads]) {
  const bool wide = job.tiles.wide, writes = threadIdx.x % kWarpLanes == 0 && share.team < job.tiles.teams;
  const unsigned first = wide ? threadIdx.x % kWarpLanes : threadIdx.x, end = wide ? kTeamThreads : first + 1;
#pragma unroll 1
  for (int row = wide ? threadIdx.x / kWarpLanes : 0; row < job.rows(); row += wide ? kTeamWarps : 1) {
    double sum = 0.0;
    for (unsigned i = first; i < end; i += kWarpLanes) sum += static_cast<double>(sums[row][i]);
    sum = warp_sum(sum);
    if (writes) job.partials(row)[share.team] = sum;
  }
}

// By run, the team with a channel's last ticket writes its gradients; by column, the block with a strip's those of its
// channels. Whether this thread belongs to such a team; all threads of a team call.
template <class Job>
__device__ __forceinline__ bool is_last_team(const Job& job, const Share& share, unsigned strip) {
  const Tiles& tiles = job.tiles;
  const unsigned count = tiles.sums_of_channel();
  if (tiles.by_run && !tiles.wide) {
    if (share.team >= tiles.teams) return false;
    if (count > 1) return last_warp(job.counters + share.channel, count);
    __syncwarp();
  } else {
    if (count > 1) return last_block(job.counters + (tiles.by_run ? share.channel : strip), count);
    __syncthreads();
  }
  return true;
}

template <class Visit>
__device__ __forceinline__ void finish(const Visit& visit, const Share& share, unsigned block) {
  __shared__ BlockSums<Visit> sums;
  __shared__ double parts[kTeamThreads];
  const auto& job = visit.job;
  const Tiles& tiles = job.tiles;
#pragma unroll
  for (int k = 0; k < Visit::slots; ++k) {
    if (!job.has(k)) break;
    sums[k][threadIdx.x] = visit.to_scale[k];
    if (!Visit::kPlain && job.shifted()) sums[job.levels + k][threadIdx.x] = visit.to_shift[k];
  }
  __syncthreads();
  const unsigned lanes = tiles.by_run && !tiles.wide ? kWarpLanes : kTeamThreads;
  Strip strip(tiles, block);
  if (tiles.by_run) {
    write_team_sums(job, share, sums);
    strip.first = share.channel;
    strip.channels = 1;
  } else if (threadIdx.x < strip.channels) {
    for (int row = 0; row < job.rows(); ++row) strip.write_partial(job.partials(row), sums[row], threadIdx.x);
  }
  if (!is_last_team(job, share, strip.at)) return;
  const unsigned thread = threadIdx.x % lanes;
  double carried = 0.0;
#pragma unroll 1
  for (int row = 0; row < job.rows(); ++row) {
    double sum = strip.part(job, row, thread, lanes);
    if (lanes == kWarpLanes) {
      sum = warp_sum(sum);
    } else if (tiles.by_run) {
      sum = block_sum<kTeamThreads>(sum);
    } else {
      __syncthreads();
      parts[threadIdx.x] = sum;
      __syncthreads();
      if (thread < strip.channels) sum = strip.total(parts, thread);
    }
    if (thread < strip.channels) job.write_gradient(row, strip.first + thread, sum, carried);
  }
}

template <class Job, bool plain, int capacity>
__global__ void __launch_bounds__(kTeamThreads, (blocks_at_once<Job, plain, capacity>()))
    backward_kernel(const __grid_constant__ Batch<Job, capacity> batch) {
  const int item = batch.item_of(blockIdx.x);
  const Job& job = batch.items[item];
  const unsigned block = block_index(batch, item);
  const Share share = job.tiles.template share<Job::kTile>(block, threadIdx.x);
  Backward<Job, plain> visit(job, share.channel);
  walk_share<Job::kWidth, Job::kInFlight, Job::kRest>(job.tiles, share, threadIdx.x % kWarpLanes, visit);
  finish(visit, share, block);
}

}  // namespace mbq::cuda
