// Rows of logits on the CPU: one read of each, in blocks that stay in the first-level cache. A block gives its maximum,
// then its sums below it; 32 lanes a sum, blocks added in double. Order is fixed: results repeat.
#pragma once

#include <atomic>

#include "arguments/tensor.h"
#include "math/softmax_math.h"
#include "simd/storage.h"

namespace mbq {

constexpr int64_t kRowGrain = 1 << 15;  // logits worth a thread

// Adds n logits, a multiple of kLanes, to the sums of their row.
template <class W>
struct AddToRow {
  MBQ_HD void operator()(const W* __restrict x, int64_t n, RowSums<double>* sums) const {
    alignas(64) W top[kLanes], sum[kLanes] = {}, squares[kLanes] = {};
    for (int64_t j = 0; j < kLanes; ++j) top[j] = -static_cast<W>(INFINITY);
    for (int64_t i = 0; i < n; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) top[j] = x[i + j] > top[j] ? x[i + j] : top[j];
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half; ++j) top[j] = top[j + half] > top[j] ? top[j + half] : top[j];
    sums->raise(top[0]);
    const W base = static_cast<W>(sums->base());
    for (int64_t i = 0; i < n; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) {
        const W e = exponential(x[i + j] - base);
        sum[j] += e;
        squares[j] += e * e;
      }
    sums->sum += lane_sum(sum);
    sums->squares += lane_sum(squares);
  }
};

template <class T, class W>
struct SumOfLogits {
  MBQ_HD void operator()(const T* __restrict x, int64_t n, double* total) const {
    double lane[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) lane[j] += static_cast<double>(static_cast<W>(x[i + j]));
    for (; i < n; ++i) lane[0] += static_cast<double>(static_cast<W>(x[i]));
    *total += lane_sum(lane);
  }
};

// out = gap of every class, as if none were the target
template <class W>
struct ClassGaps {
  MBQ_HD void operator()(const W* __restrict x, W* __restrict out, int64_t n, W top, W log_sum, W uniform,
                         W factor) const {
    for (int64_t i = 0; i < n; ++i) out[i] = class_gap(x[i], top, log_sum, uniform) * factor;
  }
};

template <class W>
struct SumOfSquares {
  MBQ_HD void operator()(const W* __restrict x, int64_t n, double* total) const {
    W lane[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) lane[j] += x[i + j] * x[i + j];
    for (; i < n; ++i) lane[0] += x[i] * x[i];
    *total += lane_sum(lane);
  }
};

// Logits, a row after the other, and their targets.
struct __attribute__((visibility("hidden"))) LogitRows {
  const char* op;
  Tensor logits, targets;
  const void* target_data;  // asked for once: every call through the ABI takes longer than a short row
  bool wide_targets;
  int64_t rows, classes, ignore_index;
  double smoothing, uniform;
  mutable std::atomic<int64_t> bad_row;

  LogitRows(const char* name, const Tensor& x, const Tensor& t, int64_t ignored, double label_smoothing = 0)
      : op(name),
        logits(make_contiguous(x)),
        targets(make_contiguous(t)),
        target_data(targets.const_data_ptr()),
        wide_targets(targets.scalar_type() == ScalarType::Long),
        ignore_index(ignored),
        smoothing(label_smoothing),
        bad_row(-1) {
    check(x.dim() == 2 && x.size(1) > 0 && x.is_cpu(), op, ": logits must be (N, C) on the CPU, C >= 1");
    rows = x.size(0);
    classes = x.size(1);
    uniform = smoothing / static_cast<double>(classes);
    check(t.dim() == 1 && t.size(0) == rows && t.is_cpu() && (wide_targets || t.scalar_type() == ScalarType::Int), op,
          ": targets must be (N,) int64 or int32 on the CPU");
  }

  // The target of a row; -1 where it is ignored or, which is noted, no class.
  int64_t target(int64_t row) const {
    const int64_t t = raw_target(row);
    if (t == ignore_index) return -1;
    if (0 <= t && t < classes) return t;
    int64_t seen = bad_row.load();
    while ((seen < 0 || row < seen) && !bad_row.compare_exchange_weak(seen, row)) {
    }
    return -1;
  }

  int64_t raw_target(int64_t row) const {
    return wide_targets ? static_cast<const int64_t*>(target_data)[row] : static_cast<const int32_t*>(target_data)[row];
  }

  // visit(row, its logits, target) for every row, those without a target too.
  template <class T, class Visit>
  void for_each(const Visit& visit) const {
    const T* x = static_cast<const T*>(logits.const_data_ptr());
    for_each_range([&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) visit(row, x + row * classes, target(row));
    });
  }

  // visit(begin, end) for rows that a thread takes together; it asks for the target of each.
  template <class Visit>
  void for_each_range(const Visit& visit) const {
    torch::stable::parallel_for(0, rows, kRowGrain / classes + 1, [&](int64_t begin, int64_t end) {
      visit(begin, end);
      finish_streams();
    });
    const int64_t bad = bad_row.load();
    check(bad < 0, op, ": targets must be in [0, ", classes, ") or ignore_index ", ignore_index, ", got ",
          bad < 0 ? 0 : raw_target(bad), " (row ", bad, ")");
  }
};

// The sums of a row over all classes but the target.
template <class T, class W = wide_t<T>>
RowSums<double> row_sums(const T* x, int64_t classes, int64_t target) {
  alignas(64) W buffer[kBlock];
  RowSums<double> sums;
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, classes - begin), at = target - begin;
    const bool whole = n % kLanes == 0 && (at < 0 || at >= n);
    const W* block = load(x + begin, buffer, n);
    if (!whole) {
      if (block != buffer) std::memcpy(buffer, block, n * sizeof(W));
      if (0 <= at && at < n) buffer[at] = -static_cast<W>(INFINITY);
      std::fill(buffer + n, buffer + (n + kLanes - 1) / kLanes * kLanes, -static_cast<W>(INFINITY));
      block = buffer;
    }
    run<AddToRow<W>>(block, (n + kLanes - 1) / kLanes * kLanes, &sums);
  }
  return sums;
}

}  // namespace mbq
