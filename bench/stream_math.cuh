// What stream_lab.cu times: the plan of a kernel, its arithmetic, its accesses, and the forward pass.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

enum class Order { chunk, tile };              // a warp walks a chunk of its own | a block takes one tile, in one shot
enum class Math { divide, reciprocal, lean };  // IEEE division | 1 / s once and two fma | and NaN-keeping min and max
enum class Cache { plain, stream };            // as it comes | loads past L1, stores that are first to be evicted
enum class Finish {
  warps,
  blocks,
  early,
  last
};  // partial sums of warps or blocks and a second launch, which may begin
    // early (PDL) | the last block of the launch adds those of blocks
struct Plan {
  Order order;
  Math math;
  int threads = 256, accesses = 4;  // accesses of 16 bytes that a thread has in flight
  int blocks = 1;                   // an SM must hold
  Cache cache = Cache::plain;
  Finish finish = Finish::last;
  bool loads_first = false;  // several levels: all their gradients before the first is used
};

constexpr int kLevels = 4;
constexpr float kTrusted = 1024.0f;  // quotients from here on are beyond every clamp

struct Level {
  float scale, offset, reciprocal, lo, hi;
};

__device__ __forceinline__ Level level_of(const float* scale, float lo, float hi) {
  const float s = __ldg(scale);
  return {s, __ldg(scale + 1), __frcp_rn(s), lo, hi};  // rounded to nearest: else 2 of 10,000 quotients are wrong
}

template <Math math>
__device__ __forceinline__ float quotient(float x, Level level) {
  if (math == Math::divide) return __fdiv_rn(__fsub_rn(x, level.offset), level.scale);
  if (math == Math::reciprocal) x = __fsub_rn(x, level.offset);
  const float q = __fmul_rn(x, level.reciprocal);
  const float v = __fmaf_rn(__fmaf_rn(-q, level.scale, x), level.reciprocal, q);
  return fabsf(q) < kTrusted ? v : q;
}
__device__ __forceinline__ float max_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
__device__ __forceinline__ float min_nan(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
template <Math math>
__device__ __forceinline__ float within(float v, Level level) {
  if (math == Math::lean) return min_nan(max_nan(v, level.lo), level.hi);
  const float raised = v < level.lo ? level.lo : v;
  return raised > level.hi ? level.hi : raised;
}
__device__ __forceinline__ float round_even(float v) { return __fsub_rn(__fadd_rn(v, 12582912.0f), 12582912.0f); }
template <Math math>
__device__ __forceinline__ float encode(float v, Level level) {
  const float code = round_even(within<math>(v, level));
  if (math == Math::lean) return code;
  const float sign = v < 0.0f ? level.lo : (v >= 0.0f ? level.hi : v);
  return level.lo == -level.hi ? sign : code;
}
template <Math math>
__device__ __forceinline__ float value(float x, Level level) {
  const float y = __fmul_rn(encode<math>(quotient<math>(x, level), level), level.scale);
  return math == Math::lean ? y : __fadd_rn(y, level.offset);
}

struct Sums {
  float scale = 0.0f, shift = 0.0f;
};
template <Math math>
__device__ __forceinline__ float terms(float grad, float x, Level level, Sums& sums) {
  const float v = quotient<math>(x, level), code = encode<math>(v, level), bound = within<math>(v, level);
  const bool inside = bound == v;
  const float slope = inside ? __fsub_rn(code, v) : bound;
  if (math == Math::lean) {
    sums.scale = __fmaf_rn(grad, slope, sums.scale);
  } else {
    sums.scale = __fadd_rn(sums.scale, __fmul_rn(grad, slope));
    sums.shift = __fadd_rn(sums.shift, (bound < v) | (bound > v) ? grad : 0.0f);
  }
  return inside ? grad : 0.0f;
}

// `width` values of a type: 16 bytes, or those of codes or results beside them
template <class T, int width>
struct alignas(sizeof(T) * width < 16 ? sizeof(T) * width : 16) Pack {
  T at[width];
};
template <class T>
constexpr int kWidth = 16 / sizeof(T);

template <Cache cache, class T>
__device__ __forceinline__ Pack<T, kWidth<T>> load(const T* from) {
  uint4 w;
  if (cache == Cache::stream) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(from));
  } else {
    w = __ldg(reinterpret_cast<const uint4*>(from));
  }
  Pack<T, kWidth<T>> out;
  std::memcpy(&out, &w, 16);
  return out;
}
template <Cache cache, class Words, class T, int width>
__device__ __forceinline__ void store_as(T* to, const Pack<T, width>& values) {
  Words words;
  std::memcpy(&words, &values, sizeof words);
  if (cache == Cache::stream) {
    __stcs(reinterpret_cast<Words*>(to), words);
  } else {
    *reinterpret_cast<Words*>(to) = words;
  }
}
template <Cache cache, class T, int width>
__device__ __forceinline__ void store(T* to, const Pack<T, width>& values) {
  if constexpr (sizeof values == 16) {
    store_as<cache, uint4>(to, values);
  } else if constexpr (sizeof values == 8) {
    store_as<cache, uint2>(to, values);
  } else {
    store_as<cache, unsigned>(to, values);
  }
}

// at(i, step) for the first of a thread's accesses, `step` elements from one to the next
template <Plan plan, int width, class At>
__device__ __forceinline__ void walk(int64_t n, int64_t chunk, At at) {
  if (plan.order == Order::tile) {
    constexpr int step = plan.threads * width;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * step * plan.accesses + threadIdx.x * width;
    if (i + (plan.accesses - 1) * step < n) at(i, step);
  } else {
    constexpr int step = 32 * width;
    const int64_t warp = (static_cast<int64_t>(blockIdx.x) * plan.threads + threadIdx.x) / 32;
    const int64_t end = min(n, (warp + 1) * chunk);
    for (int64_t i = warp * chunk + threadIdx.x % 32 * width; i < end; i += plan.accesses * step) at(i, step);
  }
}

// Codes where R is int8_t, else values
template <class T, class R, Plan plan>
__global__ void __launch_bounds__(plan.threads, plan.blocks)
    forward(const T* __restrict__ x, R* __restrict__ y, int64_t n, int64_t chunk, const float* scale) {
  constexpr int width = kWidth<T>;
  const Level level = level_of(scale, -8, 7);
  walk<plan, width>(n, chunk, [&](int64_t i, int64_t step) {
    Pack<T, width> in[plan.accesses];
#pragma unroll
    for (int b = 0; b < plan.accesses; ++b) in[b] = load<plan.cache>(x + i + b * step);
#pragma unroll
    for (int b = 0; b < plan.accesses; ++b) {
      Pack<R, width> out;
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float one = static_cast<float>(in[b].at[j]);
        if constexpr (sizeof(R) == 1) {
          out.at[j] = static_cast<R>(static_cast<int>(encode<plan.math>(quotient<plan.math>(one, level), level)));
        } else {
          out.at[j] = static_cast<R>(value<plan.math>(one, level));
        }
      }
      store<plan.cache>(y + i + b * step, out);
    }
  });
}
