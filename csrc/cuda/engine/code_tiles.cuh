// Products of 16 rows of a stored weight with 8 rows of 16-bit x on tensor cores (mma.m16n8k16). The order of columns
// within a step is free as long as codes and x have the same: a lane keeps the 32 columns that it reads.
//
// What a lane gives is host code too: the tests multiply it there, as the PTX manual says who holds what.
#pragma once

#include "code_rows.cuh"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mbq::cuda {

constexpr int kTileRows = 16, kTileBatch = 8, kTileSteps = 8;  // rows of the weight and of x; steps of a lane's columns
constexpr int kTileColumns = 4 * kCodes;                       // of a warp: four lanes share a row

// What a lane holds of 8 steps: codes of rows lane / 4 and lane / 4 + 8, x of row lane / 4
struct Fragments {
  uint32_t codes[kTileSteps][4], x[kTileSteps][2];
};

// a - b of two numbers of type T in a word
template <class T>
MBQ_HD uint32_t difference(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  using Pair = std::conditional_t<std::is_same_v<T, c10::BFloat16>, __nv_bfloat162, __half2>;
  Pair numbers[2];
  memcpy(&numbers[0], &a, sizeof(a));
  memcpy(&numbers[1], &b, sizeof(b));
  numbers[0] = __hsub2(numbers[0], numbers[1]);
#else
  T numbers[4];
  memcpy(&numbers[0], &a, sizeof(a));
  memcpy(&numbers[2], &b, sizeof(b));
  for (int i = 0; i < 2; ++i)
    numbers[i] = static_cast<T>(static_cast<float>(numbers[i]) - static_cast<float>(numbers[i + 2]));
#endif
  memcpy(&a, numbers, sizeof(a));
  return a;
}

// Codes of a pair that was switched as two numbers of type T, of which every code is one: bfloat16 has room for seven
// bits above 128, float16 for ten above 1024.
template <class T>
MBQ_HD uint32_t numbers_of(uint32_t pair, const PairSwitch& s) {
  const uint32_t keep = PairSwitch::both(static_cast<int>(s.keep));
  if constexpr (std::is_same_v<T, c10::BFloat16>)  // less 128 where the eighth bit is set, else 256
    return difference<T>((pair & (keep & 0x007F007Fu)) | 0x43004300u, (~pair & 0x00800080u) | 0x43004300u);
  return difference<T>((pair & keep) | 0x64006400u, 0x64806480u);
}

// Number a of x with number b: halves of two words
MBQ_HD uint32_t two_of(const uint32_t (&x)[kCodes / 2], int a, int b) {
  const uint32_t low = x[a / 2] >> (a % 2 * 16) & 0xFFFFu, high = x[b / 2] >> (b % 2 * 16);
  return low | high << 16;
}

template <bool of_planes, class T>
struct TileProducts {
  const RowProducts<T>& job;
  int64_t row, first;  // of the weight, of x
  int lane;

  // Each lane asks whether its own columns are whole.
  MBQ_HD void read(int64_t column, Fragments& out) const {
    const int64_t k = column + lane % 4 * kCodes;
    if (job.weight.aligned && job.aligned && k + kCodes <= job.weight.columns) {
      read_columns<true>(k, out);
    } else if (k < job.weight.columns) {
      read_columns<false>(k, out);
    } else {
      out = {};
    }
  }

  template <bool whole>
  MBQ_HD void read_columns(int64_t k, Fragments& out) const {
    const int64_t last = job.weight.rows - 1, m = first + lane / 4 < job.count ? first + lane / 4 : job.count - 1;
    uint32_t x[kCodes / 2];
    read_x<whole>(job.x + m * job.weight.columns + k, job.weight.columns - k, x);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t n = row + lane / 4 + half * kTileRows / 2;
      uint32_t codes[kCodes / 2];
      job.weight.template read<of_planes, whole>(n < last ? n : last, k, codes);
#pragma unroll
      for (int w = 0; w < kTileSteps; ++w) {
        out.codes[w][half] = numbers_of<T>(codes[2 * w], job.weight.pairs);
        out.codes[w][half + 2] = numbers_of<T>(codes[2 * w + 1], job.weight.pairs);
      }
    }
#pragma unroll
    for (int w = 0; w < kTileSteps; ++w) {
      constexpr int step = of_planes ? 8 : 1;
      const int at = of_planes ? w : 4 * w;
      out.x[w][0] = two_of(x, at, at + 2 * step);
      out.x[w][1] = two_of(x, at + step, at + 3 * step);
    }
  }

  template <bool whole>
  MBQ_HD static void read_x(const T* from, int64_t left, uint32_t (&x)[kCodes / 2]) {
    Pack<T, kCodes> pack;
    if constexpr (whole) {
      pack = load<T, kCodes>(from);
    } else {
#pragma unroll
      for (int j = 0; j < kCodes; ++j) pack.at[j] = j < left ? from[j] : static_cast<T>(0.0f);
    }
    memcpy(x, &pack, sizeof(x));
  }
};

#if defined(__CUDACC__)
// sums += codes x, of all lanes: (row lane / 4 + 8 (i / 2), x row 2 (lane % 4) + i % 2) in sums[i]
template <class T>
__device__ __forceinline__ void multiply(const uint32_t (&codes)[4], const uint32_t (&x)[2], float (&sums)[4]) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(codes[0]), "r"(codes[1]), "r"(codes[2]), "r"(codes[3]), "r"(x[0]), "r"(x[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(codes[0]), "r"(codes[1]), "r"(codes[2]), "r"(codes[3]), "r"(x[0]), "r"(x[1]));
  }
}
#endif

}  // namespace mbq::cuda
