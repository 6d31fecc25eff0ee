// Rows of logits on the CPU: one read of each, in blocks that stay in the first-level cache. A block gives its maximum,
// then its sums below it; 32 lanes a sum, blocks added in double. Order is fixed: results repeat.
#pragma once

#include <atomic>

#include "arguments/tensor.h"
#include "math/softmax_math.h"
#include "simd/storage.h"

namespace mbq {

constexpr int64_t kRowGrain = 1 << 15;  // logits worth a thread

// Whole steps of kLanes logits that lie one after the other.
template <class W>
struct Steps {
  const W* from;
  int64_t n;
};

// A block of logits in whole steps. That of the target and the last one, if it is not full, are copied, with -inf where
// there is nothing to add.
template <class W>
struct BlockSteps {
  alignas(64) W copies[2 * kLanes];
  Steps<W> parts[4];

  MBQ_HD BlockSteps(const W* x, int64_t n, int64_t target) {
    constexpr W kNone = -static_cast<W>(INFINITY);
    const int64_t whole = n / kLanes * kLanes, hole = 0 <= target && target < whole ? target / kLanes * kLanes : whole;
    const int64_t patched = hole < whole ? kLanes : 0, after = hole + patched, tail = whole < n ? kLanes : 0;
    parts[0] = {x, hole};
    parts[1] = {copies, patched};
    parts[2] = {x + after, whole - after};
    parts[3] = {copies + kLanes, tail};
    std::memcpy(copies, x + hole, patched * sizeof(W));
    std::fill_n(copies + kLanes, kLanes, kNone);
    std::memcpy(copies + kLanes, x + whole, (n - whole) * sizeof(W));
    if (0 <= target && target < n) copies[target < whole ? target - hole : kLanes + target - whole] = kNone;
  }
};

// Adds n logits but the target to the sums of their row, fetching what is next.
template <class W>
struct AddToRow {
  template <Isa level>
  MBQ_HD void operator()(const W* x, int64_t n, int64_t target, Ahead ahead, RowSums<double>* sums) const {
    alignas(64) W top[kLanes], sum[kLanes] = {}, squares[kLanes] = {};
    for (int64_t j = 0; j < kLanes; ++j) top[j] = -static_cast<W>(INFINITY);
    const BlockSteps<W> steps(x, n, target);
    for (const auto [from, count] : steps.parts)
      for (int64_t i = 0; i < count; i += kLanes)
        for (int64_t j = 0; j < kLanes; ++j) top[j] = from[i + j] > top[j] ? from[i + j] : top[j];
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half; ++j) top[j] = top[j + half] > top[j] ? top[j + half] : top[j];
    sums->raise(top[0]);
    const W base = static_cast<W>(sums->base());
    int64_t at = 0;
    for (const auto [from, count] : steps.parts)
      for (int64_t i = 0; i < count; i += kLanes, at += kLanes) {
        ahead.fetch(at);
        for (int64_t j = 0; j < kLanes; ++j) {
          const W e = exponential<kFused<level>>(from[i + j] - base);
          sum[j] += e;
          squares[j] = fused<kFused<level>>(e, e, squares[j]);
        }
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
  template <Isa level>
  MBQ_HD void operator()(const W* __restrict x, W* __restrict out, int64_t n, W top, W log_sum, W uniform,
                         W factor) const {
    for (int64_t i = 0; i < n; ++i) out[i] = class_gap<kFused<level>>(x[i], top, log_sum, uniform) * factor;
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
    const int64_t n = std::min(kBlock, classes - begin);
    const Ahead ahead{reinterpret_cast<const char*>(x + begin + n), sizeof(T)};
    run<AddToRow<W>>(load(x + begin, buffer, n), n, target - begin, ahead, &sums);
  }
  return sums;
}

}  // namespace mbq
