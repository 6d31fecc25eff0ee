// How a tensor in memory order is cut into tasks, and 16-byte access to memory.
#pragma once

#include <cstring>

#include "math/quant_math.h"

namespace mbq::cuda {

constexpr int64_t kChunk = 4096;  // elements of a run that one warp takes, of a large tensor
constexpr int64_t kLeastChunk = 256;
constexpr int64_t kWarps = 16384;   // a smaller tensor is cut finer, until so many warps share it
constexpr int64_t kShortRun = 32;   // shorter runs are walked by column
constexpr int64_t kRowGroup = 256;  // rows that one thread goes down

template <class T, int count>
struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Pack {
  T at[count];
};

// Elements in one access: 16 bytes of what is stored, so that the stores of a warp lie side by side. (The parts of
// longer loads meet in the first-level cache; those of stores do not.)
template <class Stored>
constexpr int kPack = 16 / sizeof(Stored);

// a / b and a % b. In 64 bits a division is a subroutine of a hundred instructions.
MBQ_HD int64_t quotient(int64_t a, int64_t b) {
  if ((a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}
MBQ_HD int64_t remainder_of(int64_t a, int64_t b) { return a - quotient(a, b) * b; }

// Element i of memory belongs to channel (i / inner) % channels.
struct Walk {
  int64_t outer, channels, inner;
  bool by_run;
  int64_t chunk;   // elements of a chunk, or rows of a group
  int64_t pieces;  // chunks a run, or groups of rows
  int64_t tasks;   // chunks, or columns times groups

  Walk() = default;  // unset: the room for more in a batch
  Walk(int64_t o, int64_t c, int64_t i) : outer(o), channels(c), inner(i), by_run(c <= 1 || i >= kShortRun) {
    chunk = by_run ? kChunk : kRowGroup;
    while (by_run && chunk > kLeastChunk && o * c * i < kWarps * chunk) chunk /= 2;
    pieces = ((by_run ? inner : outer) + chunk - 1) / chunk;
    tasks = pieces * channels * (by_run ? outer : inner);
  }

  MBQ_HD int64_t columns() const { return channels * inner; }
  MBQ_HD int64_t channel_of(int64_t task) const {
    if (channels == 1) return 0;
    return by_run ? remainder_of(quotient(task, pieces), channels) : quotient(remainder_of(task, columns()), inner);
  }
};

// Calls visit.at<count, batch>(i, step) for the n elements from `begin` on, which `lanes` share: `batch` accesses of
// `count` elements each, at i, i + step, ... aligned: every pointer is a multiple of 16 bytes.
template <int width, int batch, class Visit>
MBQ_HD void walk_span(int64_t begin, int64_t n, int lane, int lanes, bool aligned, Visit& visit) {
  const int64_t misfit = -begin & (width - 1);
  const int64_t head = !aligned || misfit > n ? n : misfit;
  const int64_t packed = (n - head) & -static_cast<int64_t>(width);
  const int64_t step = static_cast<int64_t>(lanes) * width, body = begin + head, tail = body + packed;
  for (int64_t i = begin + lane; i < body; i += lanes) visit.template at<1, 1>(i, 0);
  int64_t i = body + lane * width;
  for (; i + (batch - 1) * step < tail; i += batch * step) visit.template at<width, batch>(i, step);
  if constexpr (batch > 2) {
    for (; i + step < tail; i += 2 * step) visit.template at<width, 2>(i, step);
  }
  for (; i < tail; i += step) visit.template at<width, 1>(i, 0);
  for (i = tail + lane; i < begin + n; i += lanes) visit.template at<1, 1>(i, 0);
}

// The elements of a task by run: lanes share a chunk of it. (A column has one lane.)
template <int width, int batch, class Visit>
MBQ_HD void walk_run(const Walk& walk, int64_t task, int lane, int lanes, bool aligned, Visit& visit) {
  const int64_t run = quotient(task, walk.pieces), piece = (task - run * walk.pieces) * walk.chunk;
  const int64_t left = walk.inner - piece;
  walk_span<width, batch>(run * walk.inner + piece, left < walk.chunk ? left : walk.chunk, lane, lanes, aligned, visit);
}

template <class Visit>
MBQ_HD void walk_column(const Walk& walk, int64_t task, Visit& visit) {
  const int64_t columns = walk.columns(), group = quotient(task, columns), column = task - group * columns;
  const int64_t first = group * kRowGroup;
  const int64_t left = walk.outer - first, rows = left < kRowGroup ? left : kRowGroup;
  for (int64_t row = first; row < first + rows; ++row) visit.template at<1, 1>(row * columns + column, 0);
}

#if defined(__CUDA_ARCH__)
// What a pack moves as: left to itself, nvcc splits the copy of a struct.
template <int bytes>
struct Access {
  using type = uint4;
};
template <>
struct Access<8> {
  using type = uint2;
};
template <>
struct Access<4> {
  using type = uint32_t;
};
template <>
struct Access<2> {
  using type = uint16_t;
};
template <>
struct Access<1> {
  using type = uint8_t;
};

template <class Word>
__device__ __forceinline__ void put(Word* to, Word word) {
  *to = word;
}

// In assembler, or nvcc stores each word as soon as it is known: four stores of four bytes, or two.
__device__ __forceinline__ void put(uint4* to, uint4 word) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y),
               "r"(word.z), "r"(word.w));
}

__device__ __forceinline__ void put(uint2* to, uint2 word) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y));
}
#endif

// Inputs are read past the coherent cache, which also tells the compiler that no store of this kernel changes them.
template <class T, int count>
MBQ_HD Pack<T, count> load(const T* from) {
  Pack<T, count> pack;
#if defined(__CUDA_ARCH__)
  using Word = typename Access<sizeof(pack)>::type;
  Word words[sizeof(pack) / sizeof(Word)];
#pragma unroll
  for (int w = 0; w < static_cast<int>(sizeof(pack) / sizeof(Word)); ++w)
    words[w] = __ldg(reinterpret_cast<const Word*>(from) + w);
  memcpy(&pack, words, sizeof(pack));
#else
  for (int j = 0; j < count; ++j) pack.at[j] = from[j];
#endif
  return pack;
}

// All loads of a thread before the first use: they are then in flight together.
template <class T, int count, int batch>
MBQ_HD void load_batch(const T* from, int64_t step, Pack<T, count> (&packs)[batch]) {
#pragma unroll
  for (int b = 0; b < batch; ++b) packs[b] = load<T, count>(from + b * step);
}

template <class T, int count>
MBQ_HD void store(T* to, const Pack<T, count>& pack) {
#if defined(__CUDA_ARCH__)
  using Word = typename Access<sizeof(pack)>::type;
  Word words[sizeof(pack) / sizeof(Word)];
  memcpy(words, &pack, sizeof(pack));
#pragma unroll
  for (int w = 0; w < static_cast<int>(sizeof(pack) / sizeof(Word)); ++w)
    put(reinterpret_cast<Word*>(to) + w, words[w]);
#else
  for (int j = 0; j < count; ++j) to[j] = pack.at[j];
#endif
}

}  // namespace mbq::cuda
