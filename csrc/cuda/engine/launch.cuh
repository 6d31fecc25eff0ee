// Streams, devices and launch checks, through PyTorch's stable ABI.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "arguments/tensor.h"

// Weak: torch without CUDA lacks it, and the library must load there all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace mbq::cuda {

constexpr int kThreads = 256;

inline void check_cuda(cudaError_t error, const char* op) {
  check(error == cudaSuccess, op, ": CUDA launch failed: ", cudaGetErrorString(error));
}

// Makes x's device current for its lifetime and holds the stream PyTorch uses there.
struct Launch {
  const char* op;
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;

  Launch(const char* name, const Tensor& x) : op(name), guard(x.get_device()) {
    check(aoti_torch_get_current_cuda_stream != nullptr, op, ": this PyTorch has no CUDA streams");
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, const Arguments&... arguments) const {
    if (blocks == 0) return;
    check(blocks < int64_t{1} << 31, op, ": x is too large for one launch (", blocks, " blocks)");
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments...);
    check_cuda(cudaGetLastError(), op);
  }
};

}  // namespace mbq::cuda
