// What this library was built with and runs on, for `python -m mbq_kernels.info`.
#include "simd/isa.h"

#define MBQ_EXPORT extern "C" __attribute__((visibility("default")))

MBQ_EXPORT const char* mbq_instruction_set() {
  switch (mbq::isa()) {
    case mbq::Isa::v4:
      return "x86-64-v4";
    case mbq::Isa::v3:
      return "x86-64-v3";
    default:
      return "baseline";
  }
}

MBQ_EXPORT const char* mbq_compiler() { return "C++ compiler " __VERSION__; }

// Empty without CUDA kernels.
MBQ_EXPORT const char* mbq_cuda_architectures() { return MBQ_CUDA_ARCHS; }
