// The forward loop of what takes two steps of two parameters each; what is between them stays in the first-level cache.
#pragma once

#include "loop.h"

namespace mbq {

// outs[k] = Second(First(x)), each with its own parameters of level k.
template <class First, class Second, class T, class Out, class W = wide_t<T>>
struct TwoStepWork : Work<First, W> {
  Work<Second, W> second;
  const T* x;
  std::vector<Out*> outs;

  TwoStepWork(Layout layout, const std::vector<Level<First, W>>& first, const std::vector<Level<Second, W>>& then,
              const T* from, std::vector<Out*> to)
      : Work<First, W>(layout, first), second(layout, then), x(from), outs(std::move(to)) {}

  void operator()(const Task& task, bool past_cache) const {
    alignas(64) W wide_x[kBlock], between[kBlock];
    Results<Out, W> results(past_cache);
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride;
      const Block block = this->within(task.block, begin);
      const W* xs = load(x + begin, wide_x, block.n());
      for (size_t k = 0; k < outs.size(); ++k) {
        W* to = results.target(outs[k] + begin);
        if (this->walk.by_run) {
          run<ValuesByRun<First, W>>(this->at(k, block), block, xs, between);
          run<ValuesByRun<Second, W>>(second.at(k, block), block, between, to);
        } else {
          run<ValuesByColumn<First, W>>(this->at(k, block), block, xs, between);
          run<ValuesByColumn<Second, W>>(second.at(k, block), block, between, to);
        }
        results.finish(outs[k] + begin, block.n());
      }
    }
  }
};

}  // namespace mbq
