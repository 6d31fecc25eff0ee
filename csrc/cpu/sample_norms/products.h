// Squared norms of per-sample weight gradients, sum_ij (factor_ij (G^T A)_ij)^2, without those gradients. Two ways,
// both over the library's matrix product in tiles that stay in the cache:
//   tiles: pieces of G^T A are formed, multiplied by the factor, squared and summed;
//   gram:  sum_st (A A^T)_st (G G^T)_st, the upper half of it, in strips (cheaper where there are few positions).
// The tiles, the samples in one product and the order in which they are added depend on shapes alone. The library's
// product repeats with the number of threads; with another number its last bit may differ.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "samples.h"

namespace mbq {

constexpr int64_t kTile = 1 << 18;    // elements of a product: with its factors it stays in the second-level cache
constexpr int64_t kSide = 512;        // rows or columns of a tile
constexpr int64_t kBatch = 64;        // samples in one product
constexpr int64_t kLeastTasks = 8;    // samples are not put together where that would leave fewer
constexpr double kWorthThread = 2e5;  // multiplications

// What the two ways cost, in multiplications at the speed of a large product; measured by bench_sample_grad_norm.py.
constexpr double kStripCost = 1.3;   // of a product of a strip, which has few columns
constexpr double kPassCost = 4;      // of squaring one element of a tile
constexpr double kTapCost = 8;       // of adding one product of pixels
constexpr double kPreference = 0.9;  // Gram products round more: they must be cheaper by this factor

template <class W>
struct Samples {
  int64_t count, groups;  // groups of channels follow each other as samples: there are count * groups
  const Source<W>* activations;
  const Source<W>* grads;
  const W* factor;  // (groups, columns of grads, columns of activations); null: 1
  bool bias;

  int64_t all() const { return count * groups; }
  int64_t positions() const { return grads->positions; }
  int64_t inputs() const { return activations->columns; }
  int64_t outputs() const { return grads->columns; }
};

// Space for W, at the start of a cache line.
template <class W>
class Space {
 public:
  explicit Space(int64_t n) : memory_(new char[n * sizeof(W) + 64]) {}
  W* data() const { return reinterpret_cast<W*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64); }

 private:
  std::unique_ptr<char[]> memory_;
};

template <class W>
Tensor tensor_of(const Matrices<W>& m) {
  const int64_t sizes[] = {m.batch, m.rows, m.columns};
  const int64_t strides[] = {m.batch_stride, m.row_stride, m.column_stride};
  constexpr ScalarType kDtype = std::is_same_v<W, double> ? ScalarType::Double : ScalarType::Float;
  return torch::stable::from_blob(const_cast<W*>(m.data), {sizes, 3}, {strides, 3},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), kDtype);
}

// out = x y, or out += x y
template <class W>
void multiply(const Matrices<W>& x, const Matrices<W>& y, const Matrices<W>& out, bool add) {
  const Tensor result = tensor_of(out), left = tensor_of(x), right = tensor_of(y);
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_baddbmm_out(result.get(), result.get(), left.get(), right.get(), add ? 1 : 0, 1));
}

// *sum += sum of (factor x)^2; in lanes, whose order is fixed
template <bool factored, class W>
struct Squares {
  MBQ_HD void operator()(const W* __restrict x, const W* __restrict factor, int64_t n, double* sum) const {
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      W lanes[kLanes] = {};
      const int64_t size = std::min(kBlock, n - begin), whole = size / kLanes * kLanes;
      for (int64_t i = 0; i < whole; i += kLanes)
        for (int64_t j = 0; j < kLanes; ++j) {
          const W value = factored ? x[begin + i + j] * factor[begin + i + j] : x[begin + i + j];
          lanes[j] += value * value;
        }
      for (int64_t i = whole; i < size; ++i) {
        const W value = factored ? x[begin + i] * factor[begin + i] : x[begin + i];
        lanes[i - whole] += value * value;
      }
      *sum += lane_sum(lanes);
    }
  }
};

// *sum += sum of (x + shift) y, in double: terms of both signs cancel
template <class W>
struct Products {
  MBQ_HD void operator()(const W* __restrict x, W shift, const W* __restrict y, int64_t n, double* sum) const {
    double lanes[kLanes] = {};
    const int64_t whole = n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(x[i + j] + shift) * y[i + j];
    for (int64_t i = whole; i < n; ++i) lanes[i - whole] += static_cast<double>(x[i] + shift) * y[i];
    *sum += lane_sum(lanes);
  }
};

// sums[i] += x[i]
template <class W>
struct AddRow {
  MBQ_HD void operator()(const W* __restrict x, double* __restrict sums, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) sums[i] += static_cast<double>(x[i]);
  }
};

// *sum += sum of x
template <class W>
struct Sum {
  MBQ_HD void operator()(const W* __restrict x, int64_t n, double* sum) const {
    double lanes[kLanes] = {};
    const int64_t whole = n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(x[i + j]);
    for (int64_t i = whole; i < n; ++i) lanes[i - whole] += static_cast<double>(x[i]);
    *sum += lane_sum(lanes);
  }
};

// n in equal pieces of at most `size`, rounded up to whole cache lines
inline int64_t even_size(int64_t n, int64_t size) {
  const int64_t even = pieces(std::max<int64_t>(n, 1), pieces(std::max<int64_t>(n, 1), size));
  return n <= size ? std::max<int64_t>(n, 1) : (even + 15) / 16 * 16;
}

// How many samples share a product of `each` elements.
inline int64_t batch_size(int64_t samples, int64_t each) {
  return std::max<int64_t>(1, std::min({kBatch, kTile / std::max<int64_t>(each, 1), pieces(samples, kLeastTasks)}));
}

// (samples, terms) -> every sample's sum in that order, groups of channels together
inline std::vector<double> ordered_sums(const std::vector<double>& partial, int64_t count) {
  std::vector<double> sums(count);
  const int64_t terms = count ? partial.size() / count : 0;
  for (int64_t n = 0; n < count; ++n)
    for (int64_t i = 0; i < terms; ++i) sums[n] += partial[n * terms + i];
  return sums;
}

// body(task, space) for every task; `elements` of space for each thread
template <class W, class Body>
void for_tasks(int64_t tasks, double multiplications, int64_t elements, const Body& body) {
  const int64_t grain = 1 + static_cast<int64_t>(kWorthThread / std::max(multiplications, 1.0));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    const Space<W> space(elements);
    for (int64_t task = begin; task < end; ++task) body(task, space.data());
  });
}

}  // namespace mbq
