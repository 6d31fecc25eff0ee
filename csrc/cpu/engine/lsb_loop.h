// The CPU loop of round_clamp and the ops on its least significant bits, over one x or many: values or residuals, exact
// counts and a look at every u from one read; both gradients in one pass. The walks are those of loop.h.
#pragma once

#include <atomic>
#include <limits>

#include "arguments/lsb.h"
#include "simd/lsb_block.h"
#include "walk.h"

namespace mbq {

// What all blocks of one x add up to. Integers, so that the order in which threads come does not matter.
struct Found {
  std::atomic<int64_t> penalty = 0, nonzero = 0;
  std::atomic<int64_t> outside = std::numeric_limits<int64_t>::max();  // the first bad element in memory

  void add(int64_t sum, int64_t count) {
    penalty.fetch_add(sum, std::memory_order_relaxed);
    nonzero.fetch_add(count, std::memory_order_relaxed);
  }

  void note_outside(int64_t at) {
    int64_t before = outside.load(std::memory_order_relaxed);
    while (at < before && !outside.compare_exchange_weak(before, at, std::memory_order_relaxed)) {
    }
  }
};

// by_channel: of every channel, beside its limit: the scale of codes or the slope of the penalty, which the loops take
// ready made.
template <class W>
std::vector<Level<RoundClamp<W>, W>> level_of(const Weight& weight, const W* by_channel, bool unit_gradient) {
  static const W one = 1;  // the limit of u itself
  const W* limits = weight.limit ? weight.limits<W>() : &one;
  return {{weight.quantizer<W>(unit_gradient), limits, by_channel}};
}

template <LsbOut out, bool counts, class T, class W = wide_t<T>>
struct RoundClampWork : Work<RoundClamp<W>, W> {
  using Result = std::conditional_t<out == LsbOut::residual, int8_t, T>;
  const T* x;
  Result* to;
  Found* found;

  RoundClampWork(const Weight& weight, const W* scales, Result* result, Found* sums)
      : Work<RoundClamp<W>, W>(weight.layout, level_of<W>(weight, scales, false)),
        x(static_cast<const T*>(weight.x.const_data_ptr())),
        to(result),
        found(sums) {}

  void operator()(int64_t first, int64_t last, bool past_cache) const {
    alignas(64) W wide_x[kBlock];
    Results<Result, W> results(past_cache);
    int64_t penalty = 0, nonzero = 0;
    this->walk.each_task(first, last, [&](const Task& task) {
      for (int64_t row = 0; row < task.rows; ++row) {
        const int64_t begin = task.begin + row * task.stride;
        const Block block = this->within(task.block, begin);
        const W* xs = load(x + begin, wide_x, block.n());
        W* target = out == LsbOut::nothing ? nullptr : results.target(to + begin);
        BlockCounts sums;
        if (this->walk.by_run) {
          run<RoundClampByRun<out, counts, W>>(this->at(0, block), block, xs, target, &sums);
        } else {
          run<RoundClampByColumn<out, counts, W>>(this->at(0, block), block, xs, target, &sums);
        }
        if (out != LsbOut::nothing) results.finish(to + begin, block.n());
        penalty += sums.penalty;
        nonzero += sums.nonzero;
        if (sums.outside) found->note_outside(begin + first_outside(begin, xs, block.n()));
      }
    });
    found->add(penalty, nonzero);
  }

  int64_t first_outside(int64_t begin, const W* xs, int64_t n) const {
    const auto [quantizer, limits, shift] = this->levels[0];
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = begin + i, inner = this->walk.layout.inner;
      const int64_t channel = this->walk.by_run ? at / inner % this->walk.layout.channels : at % this->walk.period;
      const W u = quantizer.position(xs[i], limits[channel]);
      if (u != within_unit(u)) return i;
    }
    return n;
  }
};

template <bool task, class T, class W = wide_t<T>>
struct LsbGradientWork : Work<RoundClamp<W>, W> {
  const T* x;
  const T* grad;
  T* grad_x;

  LsbGradientWork(const Weight& weight, const W* slopes, bool unit_gradient, const T* upstream, T* to)
      : Work<RoundClamp<W>, W>(weight.layout, level_of<W>(weight, slopes, unit_gradient)),
        x(static_cast<const T*>(weight.x.const_data_ptr())),
        grad(upstream),
        grad_x(to) {}

  void operator()(const Task& part, bool past_cache) const {
    alignas(64) W wide_x[kBlock], wide_grad[kBlock];
    Results<T, W> results(past_cache);
    for (int64_t row = 0; row < part.rows; ++row) {
      const int64_t begin = part.begin + row * part.stride;
      const Block block = this->within(part.block, begin);
      const W* xs = load(x + begin, wide_x, block.n());
      const W* grads = task ? load(grad + begin, wide_grad, block.n()) : nullptr;
      W* target = results.target(grad_x + begin);
      if (this->walk.by_run) {
        run<LsbGradientByRun<task, W>>(this->at(0, block), block, grads, xs, target);
      } else {
        run<LsbGradientByColumn<task, W>>(this->at(0, block), block, grads, xs, target);
      }
      results.finish(grad_x + begin, block.n());
    }
  }
};

}  // namespace mbq
