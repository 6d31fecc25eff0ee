// Packs of what is stored as floats.
#pragma once

#include <limits>

#include "walk.cuh"

namespace mbq::cuda {

// Whether T is the upper half of a float.
template <class T>
constexpr bool kHalfOfFloat = sizeof(T) == 2 && std::numeric_limits<T>::digits == 8;

template <class T, int count>
MBQ_HD void widen(const Pack<T, count>& pack, float (&wide)[count]) {
  if constexpr (kHalfOfFloat<T> && count % 2 == 0) {  // two in a word: one instruction each, where nvcc needs three
    uint32_t words[count / 2];
    memcpy(words, &pack, sizeof(words));
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const uint32_t bits = j % 2 == 0 ? words[j / 2] << 16 : words[j / 2] & 0xFFFF0000u;
      memcpy(&wide[j], &bits, sizeof(bits));
    }
  } else {
#pragma unroll
    for (int j = 0; j < count; ++j) wide[j] = static_cast<float>(pack.at[j]);
  }
}

}  // namespace mbq::cuda
