// Blocks between memory, in the storage dtype, and the arithmetic's dtype; results that go past the cache.
#pragma once

#include <limits>

#include "block.h"

namespace mbq {

constexpr int64_t kCacheBytes = 1 << 25;  // results beyond this do not find their readers in the cache

template <class T, class W>
struct Load {
  MBQ_HD void operator()(const T* __restrict from, W* __restrict to, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<W>(from[i]);
  }
};

template <class T, class W>
struct Store {
  MBQ_HD void operator()(const W* __restrict from, T* __restrict to, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]);
  }
};

// Whether T is bfloat16: the upper half of a float, which needs no buffer to be read.
template <class T>
inline constexpr bool kIsBFloat16 = sizeof(T) == 2 && std::numeric_limits<T>::digits == 8;

// A block of storage in the arithmetic's dtype: float and double are read where they lie.
template <class T, class W>
inline const W* load(const T* from, W* buffer, int64_t n) {
  if constexpr (std::is_same_v<T, W>) {
    return from;
  } else {
    run<Load<T, W>>(from, buffer, n);
    return buffer;
  }
}

#if defined(__x86_64__)
// Rounds lines of 32 floats to bfloat16, past the cache if wished: then `to` is aligned to lines. The instruction takes
// subnormals for zeros, and NaN keeps its bits: lines that hold either are rounded by `exact`.
template <class T>
__attribute__((target("avx512f,avx512dq,avx512bf16"))) inline void round_lines(const float* from, T* to, int64_t lines,
                                                                               bool past_cache,
                                                                               void (*exact)(const float*, T*)) {
  constexpr int kNanOrSubnormal = 0x01 | 0x20 | 0x80;
  for (int64_t line = 0; line < lines; ++line, from += 32, to += 32) {
    const __m512 low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + 16);
    const __mmask16 odd = _mm512_fpclass_ps_mask(low, kNanOrSubnormal) | _mm512_fpclass_ps_mask(high, kNanOrSubnormal);
    if (__builtin_expect(odd != 0, 0)) {
      exact(from, to);
      continue;
    }
    const __m512i rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    if (past_cache) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), rounded);
    } else {
      _mm512_storeu_si512(to, rounded);
    }
  }
}
#endif

// Results of blocks on their way to memory. A result larger than the cache goes past it: an ordinary store first reads
// the line it overwrites, a third of the traffic of a forward pass.
template <class T, class W>
struct Results {
  bool past_cache;
  alignas(64) W values[kBlock];
  alignas(64) T rounded[kBlock];

  explicit Results(bool wish) : past_cache(kHasStreams && wish) {}

  // Where to compute the block that belongs at `to`: there, if nothing has to be done to it afterwards.
  W* target(T* to) {
    if constexpr (std::is_same_v<T, W>) {
      return past_cache ? values : to;
    } else {
      return values;
    }
  }

  void finish(T* to, int64_t n) {
#if defined(__x86_64__)
    if constexpr (kIsBFloat16<T> && std::is_same_v<W, float>) {
      if (rounds_to_bfloat16()) return round(to, n);
    }
#endif
    const T* from = rounded;
    if constexpr (std::is_same_v<T, W>) {
      if (!past_cache) return;
      from = values;
    } else {
      run<Store<T, W>>(static_cast<const W*>(values), past_cache ? rounded : to, n);
      if (!past_cache) return;
    }
    stream(from, to, n * sizeof(T));
  }

#if defined(__x86_64__)
  // finish() where the processor rounds.
  void round(T* to, int64_t n) const {
    const auto exact = [](const float* from, T* out) { run<Store<T, W>>(from, out, int64_t{32}); };
    const int64_t to_line = past_cache ? -reinterpret_cast<uintptr_t>(to) % 64 / sizeof(T) : 0;
    const int64_t head = std::min<int64_t>(n, to_line), lines = (n - head) / 32, end = head + lines * 32;
    if (head > 0) run<Store<T, W>>(static_cast<const W*>(values), to, head);
    round_lines<T>(values + head, to + head, lines, past_cache, exact);
    if (end < n) run<Store<T, W>>(static_cast<const W*>(values + end), to + end, n - end);
  }
#endif
};

}  // namespace mbq
