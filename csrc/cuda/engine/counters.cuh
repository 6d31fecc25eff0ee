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
// may come back while work of a destroyed stream still runs. An array that has become too small is kept: another thread
// may be about to launch with it. A launch that is captured may be replayed beside any other: its counters are its own,
// and a node in front of it clears them.
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
      first_ = of_stream(launch, like, id, count);
      return;
    }
#endif
    own_ = cleared(launch, like, count);
    first_ = static_cast<unsigned*>(own_->mutable_data_ptr());
  }

  unsigned* first() const { return first_; }

 private:
  struct Array {
    unsigned* first = nullptr;
    int64_t count = 0;
  };

  static Tensor cleared(const Launch& launch, const Tensor& like, int64_t count) {
    const Tensor counters = torch::stable::new_empty(like, {count}, ScalarType::Int);
    const size_t bytes = count * sizeof(unsigned);
    check_cuda(cudaMemsetAsync(counters.mutable_data_ptr(), 0, bytes, launch.stream), launch.op);
    return counters;
  }

  static unsigned* of_stream(const Launch& launch, const Tensor& like, unsigned long long id, int64_t count) {
    static std::mutex mutex;
    static auto& arrays = *new std::map<std::pair<int32_t, unsigned long long>, Array>;
    static auto& kept = *new std::vector<Tensor>;  // never freed: at exit CUDA may be gone already
    const std::lock_guard lock(mutex);
    Array& array = arrays[{like.get_device(), id}];
    if (array.count < count) {
      const int64_t wanted = std::max(kFewest, 2 * count);
      array = {static_cast<unsigned*>(kept.emplace_back(cleared(launch, like, wanted)).mutable_data_ptr()), wanted};
    }
    return array.first;
  }

  static constexpr int64_t kFewest = 4096;
  std::optional<Tensor> own_;  // until the launch is captured
  unsigned* first_ = nullptr;
};

}  // namespace mbq::cuda
