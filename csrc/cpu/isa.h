// The instruction sets a CPU loop is compiled for, and the choice among them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
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

// Copies to memory past the cache; what of `to` is not aligned to 16 bytes goes the usual way.
#if defined(__SSE2__)
constexpr bool kHasStreams = true;

inline void stream(const void* from, void* to, size_t bytes) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  const size_t head = std::min(bytes, (16 - reinterpret_cast<uintptr_t>(target) % 16) % 16);
  std::memcpy(target, source, head);
  size_t at = head;
  for (; at + 16 <= bytes; at += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + at),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + at)));
  std::memcpy(target + at, source + at, bytes - at);
}

// Orders streamed stores before what the thread does next, such as telling others that it is done.
inline void finish_streams() { _mm_sfence(); }
#else
constexpr bool kHasStreams = false;
inline void stream(const void* from, void* to, size_t bytes) { std::memcpy(to, from, bytes); }
inline void finish_streams() {}
#endif

}  // namespace mbq
