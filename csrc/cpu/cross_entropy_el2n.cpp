// cross_entropy_el2n on the CPU: the loss of every row and the norm of its gradient p - q in the logits, from one read;
// with label smoothing the norm is a second walk over the row, which is in the cache. Then the gradient, one pass.
#include "cpu/engine/logit_rows.h"

namespace mbq {
namespace {

constexpr const char* kOp = "cross_entropy_el2n";

// factor * (p - q), a block at a time: visit(first class, gaps, how many)
template <class T, class W, class Target, class Visit>
void each_gap(const T* x, int64_t target, const LogitRows& rows, W top, W log_sum, W factor, const Target& target_of,
              const Visit& visit) {
  alignas(64) W buffer[kBlock];
  const W uniform = static_cast<W>(rows.uniform), smoothing = static_cast<W>(rows.smoothing);
  for (int64_t begin = 0; begin < rows.classes; begin += kBlock) {
    const int64_t n = std::min(kBlock, rows.classes - begin), at = target - begin;
    W* out = target_of(begin);
    run<ClassGaps<W>>(load(x + begin, buffer, n), out, n, top, log_sum, uniform, factor);
    if (0 <= at && at < n) out[at] = target_gap(static_cast<W>(x[target]), top, log_sum, smoothing, uniform) * factor;
    visit(begin, out, n);
  }
}

template <class T, class W = wide_t<T>>
RowResult<double> result_of(const T* x, int64_t target, const LogitRows& rows) {
  const double logit = static_cast<W>(x[target]);
  RowResult<double> row = row_result(row_sums(x, rows.classes, target), logit);
  if (rows.smoothing == 0) return row;
  double sum = 0, squares = 0;
  run<SumOfLogits<T, W>>(x, rows.classes, &sum);
  row.loss = smoothed_loss(row, sum / static_cast<double>(rows.classes), rows.smoothing);
  alignas(64) W gaps[kBlock];
  each_gap(
      x, target, rows, static_cast<W>(row.top), static_cast<W>(row.log_sum), W(1), [&](int64_t) { return gaps; },
      [&](int64_t, const W* gap, int64_t n) { run<SumOfSquares<W>>(gap, n, &squares); });
  row.el2n = std::sqrt(squares);
  return row;
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_el2n_forward(const Tensor& logits, const Tensor& targets,
                                                              int64_t ignore_index, double smoothing) {
  const LogitRows rows(kOp, logits, targets, ignore_index, smoothing);
  const ScalarType dtype = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor losses = torch::stable::new_empty(logits, {rows.rows}, dtype);
  Tensor norms = torch::stable::new_empty(logits, {rows.rows}, dtype);
  Tensor kept = torch::stable::new_empty(logits, {rows.rows, 2}, dtype);
  dispatch_floats(kOp, logits.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    auto *loss = static_cast<W*>(losses.mutable_data_ptr()), *norm = static_cast<W*>(norms.mutable_data_ptr());
    auto* top_and_sum = static_cast<W*>(kept.mutable_data_ptr());
    rows.for_each<T>([&](int64_t row, const T* x, int64_t target) {
      const RowResult<double> result = target < 0 ? RowResult<double>{0, 0, 0, 0} : result_of(x, target, rows);
      loss[row] = static_cast<W>(result.loss);
      norm[row] = static_cast<W>(result.el2n);
      top_and_sum[2 * row] = static_cast<W>(result.top);
      top_and_sum[2 * row + 1] = static_cast<W>(result.log_sum);
    });
  });
  return {losses, norms, kept};
}

Tensor cross_entropy_el2n_backward(const Tensor& grad, const Tensor& logits, const Tensor& targets, const Tensor& kept,
                                   int64_t ignore_index, double smoothing) {
  const LogitRows rows(kOp, logits, targets, ignore_index, smoothing);
  const ScalarType dtype = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(grad.numel() == rows.rows && kept.numel() == 2 * rows.rows && grad.scalar_type() == dtype &&
            kept.scalar_type() == dtype && grad.is_cpu() && kept.is_cpu(),
        kOp, ": the gradient must have one element a row, what was kept two, in the arithmetic's dtype");
  const Tensor grads = make_contiguous(grad), row_numbers = make_contiguous(kept);
  Tensor grad_logits = torch::stable::new_empty(logits, {rows.rows, rows.classes});
  const bool past_cache = logits.numel() > kCacheBytes / 4;
  dispatch_floats(kOp, logits.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    const auto *grad_of = static_cast<const W*>(grads.const_data_ptr()),
               *numbers = static_cast<const W*>(row_numbers.const_data_ptr());
    rows.for_each<T>([&](int64_t row, const T* x, int64_t target) {
      T* to = static_cast<T*>(grad_logits.mutable_data_ptr()) + row * rows.classes;
      if (target < 0) {
        std::fill_n(to, rows.classes, static_cast<T>(W(0)));
        return;
      }
      Results<T, W> results(past_cache);
      each_gap(
          x, target, rows, numbers[2 * row], numbers[2 * row + 1], grad_of[row],
          [&](int64_t begin) { return results.target(to + begin); },
          [&](int64_t begin, const W*, int64_t n) { results.finish(to + begin, n); });
    });
  });
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("cross_entropy_el2n_forward", TORCH_BOX(&cross_entropy_el2n_forward));
  m.impl("cross_entropy_el2n_backward", TORCH_BOX(&cross_entropy_el2n_backward));
}

}  // namespace mbq
