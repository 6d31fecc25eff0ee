// What functions of csrc/math begin with, to be those of the host and of the device, and what their loops do.
#pragma once

#if defined(__CUDACC__)
#define MBQ_HD __host__ __device__ __forceinline__
#define MBQ_UNROLL_8 _Pragma("unroll 8")
#else
#define MBQ_UNROLL_8 _Pragma("GCC unroll 8")
#define MBQ_HD inline __attribute__((always_inline))
#endif
