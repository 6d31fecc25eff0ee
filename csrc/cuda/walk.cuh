// How a tensor in memory order is cut into tasks, where the sums of a channel are, and 16-byte access to memory.
#pragma once

#include <cstring>

#include "../quant_math.h"

namespace mbq {

constexpr int64_t kChunk = 2048;    // elements of a run that one warp takes
constexpr int64_t kShortRun = 32;   // shorter runs are walked by column
constexpr int64_t kRowGroup = 256;  // rows that one thread goes down

template <class T, int count>
struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Pack {
  T at[count];
};

// Elements in one access: 16 bytes of the narrower type, several times 16 of the wider.
template <class A, class B>
constexpr int kPack = 16 / (sizeof(A) < sizeof(B) ? sizeof(A) : sizeof(B));

// Element i of memory belongs to channel (i / inner) % channels.
struct Walk {
  int64_t outer, channels, inner;
  bool by_run;
  int64_t pieces;  // chunks a run, or groups of rows
  int64_t tasks;   // chunks, or columns times groups

  Walk() = default;  // unset: the room for more in a batch
  Walk(int64_t o, int64_t c, int64_t i) : outer(o), channels(c), inner(i), by_run(c <= 1 || i >= kShortRun) {
    pieces = ((by_run ? inner : outer) + (by_run ? kChunk : kRowGroup) - 1) / (by_run ? kChunk : kRowGroup);
    tasks = pieces * channels * (by_run ? outer : inner);
  }

  MBQ_HD int64_t columns() const { return channels * inner; }
  MBQ_HD int64_t channel_of(int64_t task) const { return by_run ? task / pieces % channels : task % columns() / inner; }

  // The partial sums of a channel, in the order of memory: how many, and where the e-th is.
  MBQ_HD int64_t sums_of_channel() const { return pieces * (by_run ? outer : inner); }
  MBQ_HD int64_t sum_index(int64_t channel, int64_t e) const {
    if (by_run) return (e / pieces * channels + channel) * pieces + e % pieces;
    return e / inner * columns() + channel * inner + e % inner;
  }
};

// Calls visit.at<count, batch>(i, step) for the n elements from `begin` on, which `lanes` share: `batch` accesses of
// `count` elements each, at i, i + step, ... aligned: every pointer is a multiple of 16 bytes.
template <int width, int batch, class Visit>
MBQ_HD void walk_span(int64_t begin, int64_t n, int lane, int lanes, bool aligned, Visit& visit) {
  const int64_t misfit = (width - begin % width) % width;
  const int64_t head = !aligned || misfit > n ? n : misfit;
  const int64_t packed = (n - head) / width * width;
  const int64_t step = static_cast<int64_t>(lanes) * width, body = begin + head, tail = body + packed;
  for (int64_t i = begin + lane; i < body; i += lanes) visit.template at<1, 1>(i, 0);
  int64_t i = body + lane * width;
  for (; i + (batch - 1) * step < tail; i += batch * step) visit.template at<width, batch>(i, step);
  for (; i < tail; i += step) visit.template at<width, 1>(i, 0);
  for (i = tail + lane; i < begin + n; i += lanes) visit.template at<1, 1>(i, 0);
}

// The elements of a task by run: lanes share a chunk of it. (A column has one lane.)
template <int width, int batch, class Visit>
MBQ_HD void walk_run(const Walk& walk, int64_t task, int lane, int lanes, bool aligned, Visit& visit) {
  const int64_t from = task / walk.pieces * walk.inner, piece = task % walk.pieces * kChunk;
  const int64_t left = walk.inner - piece;
  walk_span<width, batch>(from + piece, left < kChunk ? left : kChunk, lane, lanes, aligned, visit);
}

template <class Visit>
MBQ_HD void walk_column(const Walk& walk, int64_t task, Visit& visit) {
  const int64_t columns = walk.columns(), column = task % columns, first = task / columns * kRowGroup;
  const int64_t left = walk.outer - first, rows = left < kRowGroup ? left : kRowGroup;
  for (int64_t row = first; row < first + rows; ++row) visit.template at<1, 1>(row * columns + column, 0);
}

// A pack of 16 bytes and more moves as 16-byte words: left to itself, nvcc splits the copy of a struct. Inputs are read
// past the coherent cache, which also tells the compiler that no store of this kernel changes them.
template <class T, int count>
MBQ_HD Pack<T, count> load(const T* from) {
  Pack<T, count> pack;
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(pack) % sizeof(uint4) == 0) {
    uint4 words[sizeof(pack) / sizeof(uint4)];
#pragma unroll
    for (int w = 0; w < static_cast<int>(sizeof(pack) / sizeof(uint4)); ++w)
      words[w] = __ldg(reinterpret_cast<const uint4*>(from) + w);
    memcpy(&pack, words, sizeof(pack));
  } else
#endif
  {
    for (int j = 0; j < count; ++j) pack.at[j] = from[j];
  }
  return pack;
}

template <class T, int count>
MBQ_HD void store(T* to, const Pack<T, count>& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(pack) % sizeof(uint4) == 0) {
    uint4 words[sizeof(pack) / sizeof(uint4)];
    memcpy(words, &pack, sizeof(pack));
#pragma unroll
    for (int w = 0; w < static_cast<int>(sizeof(pack) / sizeof(uint4)); ++w) reinterpret_cast<uint4*>(to)[w] = words[w];
  } else
#endif
  {
    for (int j = 0; j < count; ++j) to[j] = pack.at[j];
  }
}

}  // namespace mbq
