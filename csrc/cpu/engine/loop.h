// The CPU loop of every elementwise op with per-channel parameters, over one tensor or many: channel indexing, tails,
// threads, fixed-order sums.
//
// Memory is walked in blocks of at most kBlock elements that stay in the first-level cache: one read of x serves every
// bit-width. Two walks cover all layouts. By run: the `inner` elements of one channel lie together, and a block is a
// piece of a run, or several short runs. By column: they do not (channels_last), so the parameters are spread over one
// period of memory, and a block has a scale for every element. Sums: 32 float lanes a run and block, double by column;
// the lanes, the blocks and the order in which their sums are added are fixed, so results do not depend on threads,
// instruction set or the other tensors of a call.
#pragma once

#include "walk.h"

namespace mbq {

// outs[k] = x through level k.
template <class Quantizer, class T, class Out, class W = wide_t<T>>
struct ForwardWork : Work<Quantizer, W> {
  const T* x;
  std::vector<Out*> outs;

  ForwardWork(Layout layout, const std::vector<Level<Quantizer, W>>& levels, const T* from, std::vector<Out*> to)
      : Work<Quantizer, W>(layout, levels), x(from), outs(std::move(to)) {}

  void operator()(const Task& task, bool past_cache) const {
    using X = std::conditional_t<kIsBFloat16<T>, T, W>;
    alignas(64) X read_x[kBlock];
    Results<Out, W> results(past_cache);
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride;
      const Block block = this->within(task.block, begin);
      const X* xs = load(x + begin, read_x, block.n());
      for (size_t k = 0; k < outs.size(); ++k) {
        const Level<Quantizer, W> level = this->at(k, block);
        W* to = results.target(outs[k] + begin);
        if (this->walk.by_run) {
          run<ValuesByRun<Quantizer, W, X>>(level, block, xs, to);
        } else {
          run<ValuesByColumn<Quantizer, W, X>>(level, block, xs, to);
        }
        results.finish(outs[k] + begin, block.n());
      }
    }
  }
};

// All tensors of a call from one read of each.
template <class Works>
void forward_loop(const Works& works) {
  int64_t bytes = 0;
  for (const auto& work : works) bytes += work.outs.size() * work.walk.layout.numel() * sizeof(*work.outs[0]);
  for_each_task(works, [&](const auto& work, const Task& task) { work(task, bytes > kCacheBytes); });
}

// What is done to a block of upstream gradients of level k before they are used: nothing.
struct AsGiven {
  template <class In, class W>
  const In* operator()(size_t, const Block&, const In* grad, W*) const {
    return grad;
  }
};

// grad_x = sum over levels of their terms, added in W in the order of the levels; sums of the other terms.
template <class Quantizer, class T, class Grad, class W = wide_t<T>, class Upstream = AsGiven>
struct BackwardWork : Work<Quantizer, W> {
  // What gradients and x are read as: in their own dtype where neither needs a buffer nor a change.
  static constexpr bool kAsStored = kIsBFloat16<T> && std::is_same_v<T, Grad> && std::is_same_v<Upstream, AsGiven>;
  using In = std::conditional_t<kAsStored, T, W>;
  const T* x;
  std::vector<const Grad*> grads;
  T* grad_x;
  mutable std::vector<double> to_scale, to_shift;  // partial sums, of a level after the other; each has one writer
  Upstream upstream;

  BackwardWork(Layout layout, const std::vector<Level<Quantizer, W>>& levels, const T* from,
               std::vector<const Grad*> given, T* to, Upstream on_the_way = {})
      : Work<Quantizer, W>(layout, levels),
        x(from),
        grads(std::move(given)),
        grad_x(to),
        upstream(std::move(on_the_way)) {
    to_scale.resize(levels.size() * this->walk.partial_sums());
    if (this->shifted) to_shift.resize(to_scale.size());
  }

  void operator()(const Task& task, bool past_cache) const {
    alignas(64) In read_x[kBlock], read_grad[kBlock];
    alignas(64) W changed[kBlock];
    Results<T, W> results(past_cache);
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride;
      const Block block = this->within(task.block, begin);
      const int64_t n = block.n();
      const In* xs = load(x + begin, read_x, n);
      const Ahead next_x{reinterpret_cast<const char*>(x + begin + n), sizeof(T)};
      for (int64_t i = 0; grads.size() > 1 && i < n; i += kLanes) next_x.fetch(i);
      W* sum = results.target(grad_x + begin);
      for (size_t k = 0; k < grads.size(); ++k) {
        const size_t later = k + 2;  // one block of bfloat16 takes less time than memory does to answer
        const Grad* next = grads[later % grads.size()] + begin + later / grads.size() * n;
        const In* gs = upstream(k, block, load(grads[k] + begin, read_grad, n), changed);
        if (this->shifted) {
          add<true>(k, task, block, gs, xs, sum, next);
        } else {
          add<false>(k, task, block, gs, xs, sum, next);
        }
      }
      results.finish(grad_x + begin, n);
    }
  }

  // Level k of a block; `next` is the block of gradients to fetch meanwhile.
  template <bool shifted>
  void add(size_t k, const Task& task, const Block& block, const In* grad, const In* xs, W* sum,
           const Grad* next) const {
    const int64_t slot = k * this->walk.partial_sums() + task.slot;
    const auto go = [&](auto body) {
      run<decltype(body)>(this->at(k, block), block, grad, xs, sum, to_scale.data() + slot,
                          shifted ? to_shift.data() + slot : nullptr,
                          Ahead{reinterpret_cast<const char*>(next), sizeof(Grad)});
    };
    if (this->walk.by_run) {
      k == 0 ? go(GradientsByRun<false, shifted, Quantizer, W, In>{})
             : go(GradientsByRun<true, shifted, Quantizer, W, In>{});
    } else {
      k == 0 ? go(GradientsByColumn<false, shifted, Quantizer, W, In>{})
             : go(GradientsByColumn<true, shifted, Quantizer, W, In>{});
    }
  }

  // The sum of channel c of level k over `partial`, which is to_scale or to_shift.
  double channel_sum(const std::vector<double>& partial, int64_t k, int64_t c) const {
    return this->walk.channel_sum(partial.data() + k * this->walk.partial_sums(), c);
  }
};

template <class Works>
void backward_loop(const Works& works) {
  int64_t bytes = 0;
  for (const auto& work : works) bytes += work.walk.layout.numel() * sizeof(*work.grad_x);
  for_each_task(works, [&](const auto& work, const Task& task) { work(task, bytes > kCacheBytes); });
}

}  // namespace mbq
