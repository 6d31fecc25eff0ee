// Tensors in, tensors out, for every quantizer with per-channel parameters: memory order, dtypes, then the launches.
#pragma once

#include "arguments/quantizers.h"
#include "kernels.cuh"
#include "launch.cuh"

namespace mbq::cuda {

static_assert(kThreads == static_cast<int>(kTeamThreads));
constexpr int64_t kMostElements = int64_t{1} << 37;  // of a launch, whose tiles 32 bits count

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

// Which of its two loops a quantizer has: for plain calls, without shifts and 1 bit, and for all others.
template <template <class> class Quantizer>
inline constexpr bool kHasPlain = true;
template <>
inline constexpr bool kHasPlain<FakeQuantizeAffine> = false;
template <>
inline constexpr bool kHasPlain<GeneralAffine> = false;
template <template <class> class Quantizer>
inline constexpr bool kHasShifted = true;
template <>
inline constexpr bool kHasShifted<DoubleRound> = false;

inline bool is_plain(const Quantizers& q) {
  return q.shifts.absent() && std::none_of(q.ranges.begin(), q.ranges.end(), [](auto b) { return b.binary(); });
}

// Calls body with the loop's slots for levels and with whether it is the plain one, both known to the compiler. many:
// tensors share a launch; more than four levels of them have one loop, plain or not.
template <template <class> class Quantizer, bool many = false, class Body>
void dispatch_loop(const Quantizers& first, const Body& body) {
  const auto slotted = [&](auto slots) {
    if constexpr (!kHasShifted<Quantizer>) {
      body(slots, std::true_type());
    } else if (kHasPlain<Quantizer> && is_plain(first)) {
      if constexpr (kHasPlain<Quantizer>) body(slots, std::true_type());
    } else {
      body(slots, std::false_type());
    }
  };
  const size_t levels = first.ranges.size();
  check(levels <= kMaxLevels, first.op, ": at most ", kMaxLevels, " bit-widths at once, got ", levels);
  if constexpr (!kSingle<Quantizer>) {
    constexpr std::integral_constant<int, kMaxLevels> most;
    if constexpr (many) {
      if (levels > 4) return body(most, std::bool_constant<!kHasShifted<Quantizer>>());
    } else {
      if (levels > 4) return slotted(most);
    }
    if (levels > 1) return slotted(std::integral_constant<int, 4>());
  }
  slotted(std::integral_constant<int, 1>());
}

// Fills in what a job has of x, of `others`, its results or upstream gradients, and of the parameters. written: a
// tensor beside these that is accessed like them.
template <template <class> class Quantizer, class Work>
void fill_job(Work& job, const Quantizers& q, const std::vector<Tensor>& others, const Tensor* written = nullptr) {
  bool aligned = on_16_bytes(q.x) && (written == nullptr || on_16_bytes(*written));
  job.levels = static_cast<int>(q.ranges.size());
  job.x = static_cast<const typename Work::Read*>(q.x.const_data_ptr());
  for (int k = 0; k < job.levels; ++k) {
    job.quantizer[k] = quantizer_of<Quantizer, float>(q, k);
    job.scale[k] = q.scales.row<float>(k, q.layout.channels);
    job.shift[k] = q.shifts.row<float>(k, q.layout.channels);
    job.unit[k] = q.units.row<float>(k, q.layout.channels);
    job.floor[k] = q.floors.row<float>(k, q.layout.channels);
    job.other[k] = static_cast<typename Work::Others*>(others[k].data_ptr());
    aligned = aligned && on_16_bytes(others[k]);
  }
  check(q.layout.numel() < kMostElements, q.op, ": x is too large for one launch");
  job.tiles = Tiles(q.layout.outer, q.layout.channels, q.layout.inner, Work::kTile, Work::kWidth, aligned);
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
  for (const Quantizers& q : each) {
    const size_t first = all.size();
    for (size_t k = 0; k < q.ranges.size(); ++k) all.push_back(allocate_like(q.x, dtype));
    q.check_against({all.begin() + first, all.end()});
  }
  dispatch_pair<kSingle<Quantizer>>(launch.op, x_dtype, dtype, [&](auto storage, auto out_storage) {
    dispatch_loop<Quantizer, many>(each[0], [&](auto slots, auto plain) {
      using Work = Job<Quantizer, decltype(storage), decltype(out_storage), slots>;
      std::vector<Work> jobs(each.size());
      for (size_t t = 0; t < each.size(); ++t)
        fill_job<Quantizer>(jobs[t], each[t], share(all, t, each[t].ranges.size()));
      constexpr int capacity = many ? kBatch<Work> : 1;
      launch_all(launch, forward_kernel<Work, plain, capacity>, jobs,
                 [](const Work& job) { return job.tiles.blocks(); });
    });
  });
  return all;
}

// Of many xs, in shared launches.
template <template <class> class Quantizer>
std::vector<Tensor> quantize_forward_each(const std::vector<Quantizers>& each, std::optional<ScalarType> out_dtype) {
  return quantize_forward<Quantizer, true>(each, out_dtype);
}

}  // namespace mbq::cuda
