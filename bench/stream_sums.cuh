// What stream_lab.cu times and ends in sums: backward kernels and penalties, and the ways to finish them.
#pragma once
#include "stream_math.cuh"

__device__ __forceinline__ double warp_sum(double v) {
  for (int lanes = 16; lanes; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
  return v;
}

// The sum over a block's threads, in its first one
template <int threads>
__device__ __forceinline__ double block_sum(double v) {
  __shared__ double warps[threads / 32];
  v = warp_sum(v);
  __syncthreads();  // an earlier sum has been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  double total = 0.0;
  for (int k = 0; k < threads / 32 && threadIdx.x == 0; ++k) total += warps[k];
  return total;
}

// The sum of a launch's partial sums in an order of their own, whichever block adds them
template <int threads>
__device__ __forceinline__ double sum_of(const double* partial, int count) {
  double sum = 0.0;
#pragma unroll 4
  for (int e = threadIdx.x; e < count; e += threads) sum += __ldcg(partial + e);
  return block_sum<threads>(sum);
}

// Whether this block is the launch's last to come here. The counter is 0 again afterwards.
__device__ __forceinline__ bool comes_last(unsigned* counter) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

struct Sinks {
  double* partial;
  unsigned* counter;
  float* grad_scale;
  double factor;
};

template <int threads, bool early>
__global__ void finish(Sinks sinks, int count) {
  if (early) asm volatile("griddepcontrol.wait;" ::: "memory");
  const double sum = sum_of<threads>(sinks.partial, count);
  if (threadIdx.x == 0) *sinks.grad_scale = static_cast<float>(sinks.factor * sum);
}

// In the launch's last block: the sums of all blocks
template <int threads, int levels>
__device__ __forceinline__ void add_blocks(Sinks sinks) {
  if (!comes_last(sinks.counter)) return;
  for (int k = 0; k < levels; ++k) {
    const double sum = sum_of<threads>(sinks.partial + k * int64_t{gridDim.x}, gridDim.x);
    if (threadIdx.x == 0) sinks.grad_scale[k] = static_cast<float>(sinks.factor * sum);
  }
}

// A block's sums to their places, level by level, and where the plan says so all blocks' to the gradient
template <Plan plan, int levels>
__device__ __forceinline__ void finish_block(const Sums (&sums)[levels], Sinks sinks) {
  if constexpr (plan.finish == Finish::warps) {
    const double sum = warp_sum(sums[0].scale);
    if (threadIdx.x % 32 == 0) sinks.partial[(int64_t{blockIdx.x} * plan.threads + threadIdx.x) / 32] = sum;
  } else {
    for (int k = 0; k < levels; ++k) {
      const double sum = block_sum<plan.threads>(sums[k].scale);
      if (threadIdx.x == 0) sinks.partial[k * int64_t{gridDim.x} + blockIdx.x] = sum;
    }
    if (plan.finish == Finish::early) asm volatile("griddepcontrol.launch_dependents;");
    if (plan.finish == Finish::last) add_blocks<plan.threads, levels>(sinks);
  }
}

template <class T, int levels>
struct Gradients {
  const T* x;
  const T* grad[levels];
  T* grad_x;
  float lo[levels], hi[levels];
  int count;  // levels, but nothing that a compiler knows
};

template <Plan plan, class T, int width>
__device__ __forceinline__ void load_all(Pack<T, width> (&packs)[plan.accesses], const T* from, int64_t step) {
#pragma unroll
  for (int b = 0; b < plan.accesses; ++b) packs[b] = load<plan.cache>(from + b * step);
}
template <Plan plan, class T, int width>
__device__ __forceinline__ void add_level(float (&total)[plan.accesses][width],
                                          const Pack<T, width> (&grad)[plan.accesses],
                                          const Pack<T, width> (&in)[plan.accesses], Level level, Sums& sums) {
#pragma unroll
  for (int b = 0; b < plan.accesses; ++b) {
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const float up = static_cast<float>(grad[b].at[j]), one = static_cast<float>(in[b].at[j]);
      total[b][j] = __fadd_rn(total[b][j], terms<plan.math>(up, one, level, sums));
    }
  }
}
template <Plan plan, class T, int width>
__device__ __forceinline__ void store_all(T* to, const float (&total)[plan.accesses][width], int64_t step) {
#pragma unroll
  for (int b = 0; b < plan.accesses; ++b) {
    Pack<T, width> out;
#pragma unroll
    for (int j = 0; j < width; ++j) out.at[j] = static_cast<T>(total[b][j]);
    store<plan.cache>(to + b * step, out);
  }
}

// One read of x for all levels. Their gradients are loaded first, or level by level behind a branch.
template <class T, int levels, Plan plan>
__global__ void __launch_bounds__(plan.threads, plan.blocks)
    backward(const __grid_constant__ Gradients<T, levels> given, int64_t n, int64_t chunk, const float* scale,
             Sinks sinks) {
  constexpr int width = kWidth<T>, kept = plan.loads_first || levels == 1 ? levels : 1;
  Level level[levels];
  Sums sums[levels];
#pragma unroll
  for (int k = 0; k < levels; ++k) level[k] = level_of(scale, given.lo[k], given.hi[k]);
  walk<plan, width>(n, chunk, [&](int64_t i, int64_t step) {
    Pack<T, width> in[plan.accesses], grad[kept][plan.accesses];
    float total[plan.accesses][width] = {};
    load_all<plan>(in, given.x + i, step);
    if (kept == levels) {
#pragma unroll
      for (int k = 0; k < kept; ++k) load_all<plan>(grad[k], given.grad[k] + i, step);
    }
#pragma unroll
    for (int k = 0; k < levels; ++k) {
      if (kept < levels) {
        if (k >= given.count) break;
        load_all<plan>(grad[0], given.grad[k] + i, step);
      }
      add_level<plan>(total, grad[kept < levels ? 0 : k], in, level[k], sums[k]);
    }
    store_all<plan>(given.grad_x + i, total, step);
  });
  bool impossible = false;  // keeps the sums of shifts
  for (int k = 0; k < levels; ++k) impossible |= sums[k].shift == 12345.678f;
  if (plan.math != Math::lean && impossible) sinks.partial[0] = 0.0;
  finish_block<plan>(sums, sinks);
}

// The last bit of an 8-bit code of u = x / limit / 2 + 1 / 2, -1 to 1
template <Math math>
__device__ __forceinline__ float last_bit(float x, Level limit) {
  constexpr float steps = 256.0f, coarse = 128.0f;
  if (math == Math::lean) {
    const float u = fminf(fmaxf(__fmaf_rn(quotient<math>(x, limit), 0.5f, 0.5f), 0.0f), 1.0f);  // NaN to 0
    const float rough = fminf(round_even(__fmul_rn(u, coarse)), coarse - 1);
    return __fmaf_rn(-2.0f, rough, fminf(round_even(__fmul_rn(u, steps)), steps - 1));
  }
  float u = __fadd_rn(__fmul_rn(quotient<math>(x, limit), 0.5f), 0.5f);
  u = x == 0.0f ? 0.5f : u;
  u = u >= 0.0f ? u : 0.0f;
  u = u > 1.0f ? 1.0f : u;
  const float fine = round_even(__fmul_rn(u, steps)), rough = round_even(__fmul_rn(u, coarse));
  return __fsub_rn(fine < steps ? fine : steps - 1, __fmul_rn(2.0f, rough < coarse ? rough : coarse - 1));
}

// sum |B| and the number of B that are not 0, B = last_bit: in floats, or in the halves of an integer
template <class T, Plan plan>
__global__ void __launch_bounds__(plan.threads, plan.blocks)
    penalty(const T* __restrict__ x, int64_t n, int64_t chunk, const float* scale, Sinks sinks) {
  constexpr int width = kWidth<T>;
  const Level limit = level_of(scale, 0, 0);
  unsigned found = 0;
  Sums sums[2];
  walk<plan, width>(n, chunk, [&](int64_t i, int64_t step) {
    Pack<T, width> in[plan.accesses];
    load_all<plan>(in, x + i, step);
#pragma unroll
    for (int b = 0; b < plan.accesses; ++b) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float bit = last_bit<plan.math>(static_cast<float>(in[b].at[j]), limit);
        if (plan.math == Math::lean) {
          sums[0].scale += fabsf(bit), sums[1].scale += fminf(fabsf(bit), 1.0f);
        } else {
          const int whole = static_cast<int>(bit);
          found += static_cast<unsigned>(abs(whole)) << 16 | (whole != 0);
        }
      }
    }
  });
  if (plan.math != Math::lean) {
    sums[0].scale = static_cast<float>(found >> 16), sums[1].scale = static_cast<float>(found & 0xffff);
  }
  finish_block<plan>(sums, sinks);
}
