// Where the tickets of a launch (last_block.cuh) are counted.
#pragma once

#include <map>
#include <mutex>

#include "launch.cuh"

namespace mbq::cuda {

// `count` counters that are 0 when the next launch of launch.stream begins.
//
// Launches of one stream never overlap and each leaves its counters at 0, so that all launches of a stream share one
// array, however many are in flight. Streams are told apart by the id that CUDA gives once, not by the handle, which
// may come back while work of a destroyed stream still runs. The array is CUDA's memory and not PyTorch's, whose
// allocator may be told to take back all that a part of a program has allocated; one that has become too small is kept,
// because another thread may be about to launch with it. A launch that is captured may be replayed beside any other:
// its counters are its own, and a node in front of it clears them.
class __attribute__((visibility("hidden"))) Counters {
 public:
  Counters(const Launch& launch, const Tensor& like, int64_t count) {
    if (count == 0) return;
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(launch.stream, &capturing), launch.op);
#if CUDART_VERSION >= 12000
    if (capturing == cudaStreamCaptureStatusNone) {
      unsigned long long id = 0;
      check_cuda(cudaStreamGetId(launch.stream, &id), launch.op);
      first_ = of_stream(launch, like.get_device(), id, count);
      return;
    }
#endif
    own_ = torch::stable::new_empty(like, {count}, ScalarType::Int);
    first_ = static_cast<unsigned*>(own_->mutable_data_ptr());
    clear(launch, first_, count);
  }

  unsigned* first() const { return first_; }

 private:
  struct Array {
    unsigned* first = nullptr;
    int64_t count = 0;
  };

  static void clear(const Launch& launch, unsigned* counters, int64_t count) {
    check_cuda(cudaMemsetAsync(counters, 0, count * sizeof(unsigned), launch.stream), launch.op);
  }

  static unsigned* of_stream(const Launch& launch, int32_t device, unsigned long long id, int64_t count) {
    static std::mutex mutex;
    static auto& arrays = *new std::map<std::pair<int32_t, unsigned long long>, Array>;  // at exit CUDA may be gone
    const std::lock_guard lock(mutex);
    Array& array = arrays[{device, id}];
    if (array.count < count) {
      const int64_t wanted = std::max(kFewest, 2 * count);
      unsigned* counters = allocate(launch, wanted);
      clear(launch, counters, wanted);
      array = {counters, wanted};
    }
    return array.first;
  }

  // While another thread captures a graph, cudaMalloc is forbidden to threads that have not said that they capture
  // none.
  static unsigned* allocate(const Launch& launch, int64_t count) {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), launch.op);
    void* counters = nullptr;
    const cudaError_t error = cudaMalloc(&counters, count * sizeof(unsigned));
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), launch.op);
    check_cuda(error, launch.op);
    return static_cast<unsigned*>(counters);
  }

  static constexpr int64_t kFewest = 4096;
  std::optional<Tensor> own_;  // until the launch is captured
  unsigned* first_ = nullptr;
};

}  // namespace mbq::cuda
