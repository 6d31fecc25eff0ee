// The instruction sets a CPU loop is compiled for, and the choice among them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
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

// Whether a set has one instruction for a * b + c; what a compiler knows of other processors it knows of all of them.
#if defined(__x86_64__)
template <Isa level>
constexpr bool kFused = level != Isa::baseline;
#else
template <Isa level>
constexpr bool kFused = true;
#endif

// body(value) with the value as a constant of the compiler's; `value` is one of `values`.
template <int... values, class Body>
inline void with_constant(int value, Body body) {
  ((value == values ? body(std::integral_constant<int, values>{}) : void()), ...);
}

// A Body may ask, by a template parameter of its operator(), for the set it is compiled for.
template <Isa level, class Body, class... Arguments>
inline __attribute__((always_inline)) void run_at(Body body, Arguments&... arguments) {
  if constexpr (requires { body.template operator()<level>(arguments...); })
    body.template operator()<level>(arguments...);
  else
    body(arguments...);
}

template <class Body, class... Arguments>
inline void run_baseline(Arguments&... arguments) {
  run_at<Isa::baseline>(Body{}, arguments...);
}

#if defined(__x86_64__)
template <class Body, class... Arguments>
__attribute__((target("arch=x86-64-v3"))) inline void run_v3(Arguments&... arguments) {
  run_at<Isa::v3>(Body{}, arguments...);
}

template <class Body, class... Arguments>
__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))) inline void run_v4(Arguments&... arguments) {
  run_at<Isa::v4>(Body{}, arguments...);
}
#endif

// Runs Body{}(arguments...) compiled for the instruction set in use. Body::operator() must be always_inline: that puts
// its loop into the function that carries the target. (target_clones would do the same, but nobody could then choose
// the set, and the tests compare all of them.) By reference: a structure copied in vectors waits for the words that it
// was written in.
template <class Body, class... Arguments>
inline void run(Arguments&&... arguments) {
#if defined(__x86_64__)
  if (isa() == Isa::v4) return run_v4<Body>(arguments...);
  if (isa() == Isa::v3) return run_v3<Body>(arguments...);
#endif
  run_baseline<Body>(arguments...);
}

// Whether the loops may use the instructions that round to bfloat16.
inline bool rounds_to_bfloat16() {
#if defined(__x86_64__)
  static const bool can = isa() == Isa::v4 && __builtin_cpu_supports("avx512bf16");
  return can;
#else
  return false;
#endif
}

// Copies of whole cache lines past the cache, `to` aligned to a line. One store a line where the processor has one that
// wide: with narrower ones four bit-widths took half as long again where memory had bandwidth to spare.
#if defined(__x86_64__)
constexpr bool kHasStreams = true;

template <Isa level>
struct Lines {
  static void stream(const uint8_t* from, uint8_t* to, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 16)
      _mm_stream_ps(reinterpret_cast<float*>(to + at), _mm_loadu_ps(reinterpret_cast<const float*>(from + at)));
  }
};

template <>
struct Lines<Isa::v3> {
  __attribute__((target("avx"))) static void stream(const uint8_t* from, uint8_t* to, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 32)
      _mm256_stream_ps(reinterpret_cast<float*>(to + at), _mm256_loadu_ps(reinterpret_cast<const float*>(from + at)));
  }
};

template <>
struct Lines<Isa::v4> {
  __attribute__((target("avx512f"))) static void stream(const uint8_t* from, uint8_t* to, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), _mm512_loadu_si512(from + at));
  }
};

// Copies past the cache; the ends of `to` that fill no cache line go the usual way.
inline void stream(const void* from, void* to, size_t bytes) {
  const uint8_t* source = static_cast<const uint8_t*>(from);
  uint8_t* target = static_cast<uint8_t*>(to);
  const size_t head = std::min<size_t>(bytes, -reinterpret_cast<uintptr_t>(target) % 64);
  const size_t lines = (bytes - head) / 64 * 64, end = head + lines;
  const auto copy = isa() == Isa::v4   ? Lines<Isa::v4>::stream
                    : isa() == Isa::v3 ? Lines<Isa::v3>::stream
                                       : Lines<Isa::baseline>::stream;
  std::memcpy(target, source, head);
  copy(source + head, target + head, lines);
  std::memcpy(target + end, source + end, bytes - end);
}

// Orders streamed stores before what the thread does next, such as telling others that it is done.
inline void finish_streams() { _mm_sfence(); }
#else
constexpr bool kHasStreams = false;
template <Isa>
struct Lines {
  static void stream(const uint8_t* from, uint8_t* to, size_t bytes) { std::memcpy(to, from, bytes); }
};
inline void stream(const void* from, void* to, size_t bytes) { std::memcpy(to, from, bytes); }
inline void finish_streams() {}
#endif

}  // namespace mbq
