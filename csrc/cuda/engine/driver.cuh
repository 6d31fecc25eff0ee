// Tensors in, tensors out, for every quantizer with per-channel parameters: memory order, dtypes, then the launches.
#pragma once

#include "arguments/quantizers.h"
#include "kernels.cuh"
#include "launch.cuh"

namespace mbq::cuda {

inline bool on_16_bytes(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0; }

// Calls body with values of the storage types of x and of `other`, its results or their gradients; float64 is refused.
// same: the two are one.
template <bool same, class Body>
void dispatch_pair(const char* op, ScalarType x, ScalarType other, const Body& body) {
  check(x != ScalarType::Double && other != ScalarType::Double, op,
        ": float64 is for the CPU; CUDA takes float32, bfloat16 and float16");
  if constexpr (same) {
    check(x == other, op, ": x and its result or gradient must have one dtype");
    dispatch_floats(op, x, [&](auto storage) {
      if constexpr (!std::is_same_v<decltype(storage), double>) body(storage, storage);
    });
  } else {
    dispatch_floats(op, x, [&](auto storage) {
      using T = decltype(storage);
      dispatch_floats(op, other, [&](auto other_storage) {
        using Other = decltype(other_storage);
        if constexpr (!std::is_same_v<T, double> && !std::is_same_v<Other, double>) body(storage, other_storage);
      });
    });
  }
}

// A job without its gradients: `others` are the results or the upstream gradients.
template <template <class> class Quantizer, class T, class Other>
Job<Quantizer, T, Other> job_of(const Quantizers& q, const std::vector<Tensor>& others) {
  Job<Quantizer, T, Other> job{Walk(q.layout.outer, q.layout.channels, q.layout.inner), on_16_bytes(q.x)};
  job.levels = static_cast<int>(q.ranges.size());
  job.x = static_cast<const T*>(q.x.const_data_ptr());
  check(job.levels <= kMaxLevels, q.op, ": at most ", kMaxLevels, " bit-widths at once, got ", job.levels);
  for (int k = 0; k < job.levels; ++k) {
    job.quantizer[k] = quantizer_of<Quantizer, float>(q, k);
    job.scale[k] = q.scales.row<float>(k, q.layout.channels);
    job.shift[k] = q.shifts.row<float>(k, q.layout.channels);
    job.unit[k] = q.units.row<float>(k, q.layout.channels);
    job.floor[k] = q.floors.row<float>(k, q.layout.channels);
    job.other[k] = static_cast<Other*>(others[k].data_ptr());
    job.aligned = job.aligned && on_16_bytes(others[k]);
  }
  return job;
}

inline int64_t blocks_of(const Walk& walk) {
  return (walk.tasks * (walk.by_run ? kWarpLanes : 1) + kThreads - 1) / kThreads;
}

// Launches `kernel` over all items, as many at once as a batch takes; blocks_of(item) blocks each.
template <class Item, int capacity, class Blocks>
void launch_all(const Launch& launch, void (*kernel)(Batch<Item, capacity>), const std::vector<Item>& items,
                const Blocks& blocks_of) {
  Batch<Item, capacity> batch;
  for (const Item& item : items) {
    const int64_t blocks = blocks_of(item);
    if (blocks == 0) continue;
    if (!batch.takes(blocks)) {
      launch(kernel, batch.first_block[batch.count], batch);
      batch.count = 0;
    }
    check(batch.takes(blocks), launch.op, ": x is too large for one launch (", blocks, " blocks)");
    batch.add(item, blocks);
  }
  launch(kernel, batch.first_block[batch.count], batch);
}

// Of every x one x_hat of `out_dtype` (x's by default) per quantizer, in x's memory order, in one flat list. many: all
// share launches; else there is one x.
template <template <class> class Quantizer, bool many = false>
std::vector<Tensor> quantize_forward(const std::vector<Quantizers>& each, std::optional<ScalarType> out_dtype) {
  const Launch launch(each[0].op, each[0].x);
  const ScalarType x_dtype = each[0].x.scalar_type(), dtype = out_dtype.value_or(x_dtype);
  std::vector<Tensor> all;
  dispatch_pair<kSingle<Quantizer>>(launch.op, x_dtype, dtype, [&](auto storage, auto out_storage) {
    using Work = Job<Quantizer, decltype(storage), decltype(out_storage)>;
    std::vector<Work> jobs;
    for (const Quantizers& q : each) {
      std::vector<Tensor> outs;
      for (size_t k = 0; k < q.ranges.size(); ++k) outs.push_back(allocate_like(q.x, dtype));
      q.check_against(outs);
      jobs.push_back(job_of<Quantizer, decltype(storage), decltype(out_storage)>(q, outs));
      all.insert(all.end(), outs.begin(), outs.end());
    }
    constexpr int capacity = many ? kBatch<Work> : 1;
    launch_all(launch, forward_kernel<Quantizer, decltype(storage), decltype(out_storage), capacity>, jobs,
               [](const Work& job) { return blocks_of(job.walk); });
  });
  return all;
}

// Of many xs, in shared launches.
template <template <class> class Quantizer>
std::vector<Tensor> quantize_forward_each(const std::vector<Quantizers>& each, std::optional<ScalarType> out_dtype) {
  return quantize_forward<Quantizer, true>(each, out_dtype);
}

}  // namespace mbq::cuda
