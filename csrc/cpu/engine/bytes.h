// The CPU loop of every op from bytes to bytes: chunks, threads, stores past the cache, the check of codes.
#pragma once

#include <atomic>

#include "arguments/codes.h"
#include "simd/block.h"
#include "simd/storage.h"

namespace mbq {

constexpr int64_t kChunk = 2048;  // codes taken at a time: few, so that memory is read while results are written
constexpr int64_t kChunkWords = kChunk / kWord;
constexpr int64_t kCodesPerThread = 1 << 17;  // worth a thread

// body(row, begin, count) for all chunks of all rows.
template <class Body>
void for_each_chunk(const CodeRows& codes, const Body& body) {
  const int64_t pieces = (codes.n + kChunk - 1) / kChunk, chunks = codes.rows * pieces;
  if (chunks == 0) return;
  const int64_t grain = std::max<int64_t>(1, kCodesPerThread * chunks / (codes.rows * codes.n));
  torch::stable::parallel_for(0, chunks, grain, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk % pieces * kChunk;
      body(chunk / pieces, begin, std::min(kChunk, codes.n - begin));
    }
    finish_streams();
  });
}

// A piece of a result from the cache to its place; of a large result past the cache.
inline void deliver(const void* made, uint8_t* to, int64_t bytes, bool past_cache) {
  if (past_cache) {
    stream(made, to, bytes);
  } else {
    std::memcpy(to, made, bytes);
  }
}

// The next chunk of an input, to fetch while this one is computed.
inline void fetch(const void* from, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(from) + line, 0, 2);
}

inline bool is_large(int64_t bytes) { return kHasStreams && bytes > kCacheBytes; }

template <class Code>
struct Outside {
  MBQ_HD void operator()(const Code* codes, int64_t n, Bounds<int> range, bool* found) const {
    const Code lo = static_cast<Code>(range.lo), hi = static_cast<Code>(range.hi), hole = range.binary() ? 0 : hi;
    uint8_t any = 0;
    for (int64_t i = 0; i < n; ++i) any |= (codes[i] < lo) | (codes[i] > hi);
    if (range.binary())
      for (int64_t i = 0; i < n; ++i) any |= codes[i] == hole;
    *found = any != 0;
  }
};

// Whether all codes seen were in the range of their bit-width; any thread may say no.
template <class Code>
struct RangeCheck {
  const char* op;
  int64_t bits;
  Bounds<int> range;
  std::atomic<bool> failed = false;

  RangeCheck(const char* name, int64_t b) : op(name), bits(b), range(code_range(name, b, std::is_signed_v<Code>)) {}

  void see(const Code* codes, int64_t n) {
    if (bits == 8) return;
    bool found = false;
    run<Outside<Code>>(codes, n, range, &found);
    if (found) failed.store(true, std::memory_order_relaxed);
  }

  // Raises with the first code in memory that is out of range.
  void finish(const Code* codes, int64_t n) const {
    if (!failed) return;
    for (int64_t i = 0; i < n; ++i) {
      const int code = codes[i];
      const bool fits = range.binary() ? code == range.lo || code == range.hi : range.lo <= code && code <= range.hi;
      check(fits, op, ": codes must be ", range.binary() ? "" : "between ", range.lo, range.binary() ? " or " : " and ",
            range.hi, " at ", bits, bits == 1 ? " bit" : " bits", ", got ", code);
    }
  }
};

}  // namespace mbq
