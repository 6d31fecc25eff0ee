// Blocks between memory, in the storage dtype, and the arithmetic's dtype; results that go past the cache.
#pragma once

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
};

}  // namespace mbq
