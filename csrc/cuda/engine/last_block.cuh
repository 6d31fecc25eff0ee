// Sums over all blocks of a launch, finished in that launch and in a fixed order: every team, a warp or a block, writes
// its partial sums and takes a ticket. The team with the last ticket finds all of them written and adds them in the
// order of their index. Which team that is changes nothing, so that results repeat.
//
//   partial[team] = sum;  if (last_block(counter, teams)) total = sum of load_partial(partial + 0 ... teams - 1)
//
// The counter is 0 before the launch, and again after it (counters.cuh says where it lives).
#pragma once

#include "math/quant_math.h"

namespace mbq::cuda {

constexpr int kWarpLanes = 32;

// Takes one of `count` tickets: whether it is the last. The thread that gets the last one sees what all threads wrote
// before they took theirs, and what their teams wrote before a barrier in front of that.
MBQ_HD bool take_ticket(unsigned* counter, unsigned count) {
#if defined(__CUDA_ARCH__)
  __threadfence();
  const bool last = atomicInc(counter, count - 1) == count - 1;
  if (last) __threadfence();
  return last;
#else
  const unsigned ticket = *counter;
  *counter = ticket >= count - 1 ? 0 : ticket + 1;  // what atomicInc does
  return ticket == count - 1;
#endif
}

// A partial sum that another team may have written, past the first-level cache, which would not know.
template <class T>
MBQ_HD T load_partial(const T* from) {
#if defined(__CUDA_ARCH__)
  return __ldcg(from);
#else
  return *from;
#endif
}

#if defined(__CUDACC__)
constexpr unsigned kFullWarp = 0xffffffffu;

// A sum over the warp in a fixed tree; every lane gets it.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarpLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

// A sum over a block of `threads` in a fixed order; every thread gets it. All of them call it.
template <int threads, class T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T warps[threads / kWarpLanes];
  value = warp_sum(value);
  __syncthreads();  // the sums of an earlier call have been read
  if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = value;
  __syncthreads();
  T total = warps[0];
#pragma unroll
  for (int w = 1; w < threads / kWarpLanes; ++w) total += warps[w];
  return total;
}

// Whether this warp, all of whose lanes call, is the last of `count` teams.
__device__ __forceinline__ bool last_warp(unsigned* counter, unsigned count) {
  __syncwarp();
  unsigned last = 0;
  if (threadIdx.x % kWarpLanes == 0) last = take_ticket(counter, count);
  last = __shfl_sync(kFullWarp, last, 0);
  __syncwarp();  // a shuffle orders no memory: all lanes read what the ticket's lane has seen
  return last != 0;
}

// Whether this block, all of whose threads call, is the last of `count` teams.
__device__ __forceinline__ bool last_block(unsigned* counter, unsigned count) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) last = take_ticket(counter, count);
  __syncthreads();
  return last;
}
#endif

}  // namespace mbq::cuda
