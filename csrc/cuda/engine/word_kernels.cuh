// The kernel over words.cuh, and the choice of what a bit-width asks for.
#pragma once

#include "arguments/codes.h"
#include "launch.cuh"
#include "words.cuh"

namespace mbq::cuda {

template <class Body>
__global__ void words_kernel(const __grid_constant__ Body body) {
  walk_words(body.words, blockIdx.x, threadIdx.x, blockDim.x, body);
}

template <class Body>
void launch_words(const Launch& launch, const Body& body) {
  const int64_t each = static_cast<int64_t>(kThreads) * kWords;
  launch(words_kernel<Body>, (body.words.count() + each - 1) / each, body);
}

// The words of rows of codes; rows that end with a word are one row.
inline Words words_of(const CodeRows& given, std::initializer_list<const Tensor*> tensors) {
  const CodeRows rows = given.joined(kWord);
  Words words{rows.rows, rows.n, rows.rows == 1};
  for (const Tensor* tensor : tensors)
    words.aligned = words.aligned && reinterpret_cast<uintptr_t>(tensor->data_ptr()) % 16 == 0;
  return words;
}

// Calls body with a std::integral_constant of `bits`, which is one of Bits.
template <int... Bits, class Body>
void dispatch_bits(const char* op, int64_t bits, const Body& body) {
  const bool known = ((bits == Bits && (body(std::integral_constant<int, Bits>{}), true)) || ...);
  check(known, op, ": no kernel for ", bits, " bits");
}

}  // namespace mbq::cuda
