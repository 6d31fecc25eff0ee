// The instruction sets a CPU loop is compiled for, and the choice among them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mbq {

enum class Isa { baseline, v3, v4 };

// The widest set the processor has; MBQ_CPU_ISA=baseline|v3|v4 asks for a narrower one. Read once. (The Python side
// warns where the wish was not met.)
inline Isa isa() {
#if defined(__x86_64__)
  static const Isa chosen = [] {
    __builtin_cpu_init();
    const Isa best = __builtin_cpu_supports("x86-64-v4")   ? Isa::v4
                     : __builtin_cpu_supports("x86-64-v3") ? Isa::v3
                                                           : Isa::baseline;
    const char* wish = std::getenv("MBQ_CPU_ISA");
    const auto wished = [&](const char* name) { return wish != nullptr && std::strcmp(wish, name) == 0; };
    const Isa asked = wished("baseline") ? Isa::baseline : wished("v3") ? Isa::v3 : Isa::v4;
    return asked < best ? asked : best;
  }();
  return chosen;
#else
  return Isa::baseline;
#endif
}

template <class Body, class... Arguments>
inline void run_baseline(Arguments... arguments) {
  Body{}(arguments...);
}

#if defined(__x86_64__)
template <class Body, class... Arguments>
__attribute__((target("arch=x86-64-v3"))) inline void run_v3(Arguments... arguments) {
  Body{}(arguments...);
}

template <class Body, class... Arguments>
__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))) inline void run_v4(Arguments... arguments) {
  Body{}(arguments...);
}
#endif

// Runs Body{}(arguments...) compiled for the instruction set in use. Body::operator() must be always_inline: that puts
// its loop into the function that carries the target. (target_clones would do the same, but nobody could then choose
// the set, and the tests compare all of them.)
template <class Body, class... Arguments>
inline void run(Arguments... arguments) {
#if defined(__x86_64__)
  if (isa() == Isa::v4) return run_v4<Body>(arguments...);
  if (isa() == Isa::v3) return run_v3<Body>(arguments...);
#endif
  run_baseline<Body>(arguments...);
}

// Copies of whole cache lines past the cache, `to` aligned to a line. One store a line where the processor has one that
// wide: with narrower ones four bit-widths took half as long again where memory had bandwidth to spare.
#if defined(__x86_64__)
constexpr bool kHasStreams = true;

__attribute__((target("avx512f"))) inline void stream_lines_v4(const char* from, char* to, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), _mm512_loadu_si512(from + at));
}

__attribute__((target("avx"))) inline void stream_lines_v3(const char* from, char* to, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 32)
    _mm256_stream_ps(reinterpret_cast<float*>(to + at), _mm256_loadu_ps(reinterpret_cast<const float*>(from + at)));
}

inline void stream_lines_baseline(const char* from, char* to, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 16)
    _mm_stream_ps(reinterpret_cast<float*>(to + at), _mm_loadu_ps(reinterpret_cast<const float*>(from + at)));
}

using StreamLines = void (*)(const char* from, char* to, size_t bytes);

inline StreamLines stream_lines() {
  return isa() == Isa::v4 ? stream_lines_v4 : isa() == Isa::v3 ? stream_lines_v3 : stream_lines_baseline;
}

// Copies past the cache; the ends of `to` that fill no cache line go the usual way.
inline void stream(const void* from, void* to, size_t bytes) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  const size_t head = std::min<size_t>(bytes, -reinterpret_cast<uintptr_t>(target) % 64);
  const size_t lines = (bytes - head) / 64 * 64, end = head + lines;
  std::memcpy(target, source, head);
  stream_lines()(source + head, target + head, lines);
  std::memcpy(target + end, source + end, bytes - end);
}

// Orders streamed stores before what the thread does next, such as telling others that it is done.
inline void finish_streams() { _mm_sfence(); }
#else
constexpr bool kHasStreams = false;
using StreamLines = void (*)(const char* from, char* to, size_t bytes);
inline StreamLines stream_lines() { return nullptr; }
inline void stream(const void* from, void* to, size_t bytes) { std::memcpy(to, from, bytes); }
inline void finish_streams() {}
#endif

}  // namespace mbq
