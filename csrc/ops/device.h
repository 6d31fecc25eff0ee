// The device that a source of this folder is compiled for: the CPU by a C++ compiler, CUDA by nvcc.
#pragma once

#ifdef __CUDACC__
// A namespace of its own, because functions of one name and signature would be one function in the library.
#define MBQ_NAMESPACE mbq::cuda
#define MBQ_KEY CUDA
#else
#define MBQ_NAMESPACE mbq
#define MBQ_KEY CPU
#endif
