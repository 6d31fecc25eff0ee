// Numbers out of packs and into them. On the GPU two 16-bit floats stay in one register until they are needed: as
// elements of their own they would have a register each.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "walk.cuh"

namespace mbq::cuda {

template <class T, int count>
constexpr bool kIsPaired = sizeof(T) == 2 && count % 2 == 0;

template <class T, int count>
MBQ_HD float element(const Pack<T, count>& pack, int j) {
#if defined(__CUDA_ARCH__)
  if constexpr (kIsPaired<T, count>) {
    uint32_t word;
    memcpy(&word, reinterpret_cast<const char*>(&pack) + j / 2 * 4, 4);
    if constexpr (std::is_same_v<T, c10::BFloat16>)
      return __uint_as_float(j % 2 == 0 ? word << 16 : word & 0xffff0000u);
    return __half2float(__ushort_as_half(static_cast<unsigned short>(j % 2 == 0 ? word : word >> 16)));
  }
#endif
  return static_cast<float>(pack.at[j]);
}

template <class T, int count>
MBQ_HD Pack<T, count> pack_of(const float (&values)[count]) {
  Pack<T, count> pack;
#if defined(__CUDA_ARCH__)
  if constexpr (kIsPaired<T, count>) {
    using Pair = std::conditional_t<std::is_same_v<T, c10::BFloat16>, __nv_bfloat162, __half2>;
#pragma unroll
    for (int j = 0; j < count; j += 2) {
      Pair pair;
      if constexpr (std::is_same_v<T, c10::BFloat16>) {
        pair = __floats2bfloat162_rn(values[j], values[j + 1]);
      } else {
        pair = __floats2half2_rn(values[j], values[j + 1]);
      }
      memcpy(reinterpret_cast<char*>(&pack) + j * 2, &pair, 4);
    }
  } else
#endif
  {
#pragma unroll
    for (int j = 0; j < count; ++j) pack.at[j] = static_cast<T>(values[j]);
  }
  return pack;
}

}  // namespace mbq::cuda
