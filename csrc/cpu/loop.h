// The CPU loop of every elementwise op with per-channel parameters: channel indexing, tails, threads, fixed-order sums.
//
// Memory is walked in blocks of at most kBlock elements that stay in the first-level cache: one read of x serves every
// bit-width. Two walks cover all layouts. By run: the `inner` elements of one channel lie together, and a block has one
// scale. By column: they do not (channels_last), so the parameters are spread over one period of memory, and a block
// has a scale for every element. Sums: 32 float lanes a block by run, double by column; the lanes, the blocks and the
// order in which their sums are added are fixed, so results do not depend on threads or instruction set.
#pragma once

#include "walk.h"

namespace mbq {

// outs[k] = x through level k, for every level from one read of x.
template <class Quantizer, class T, class Out, class W = wide_t<T>>
void forward_loop(Layout layout, const std::vector<Level<Quantizer, W>>& given, const T* x,
                  const std::vector<Out*>& outs) {
  const Walk walk(layout);
  const SpreadLevels<Quantizer, W> spread(walk, given);
  walk.for_each_task([&](const Task& task, int64_t) {
    alignas(64) W wide_x[kBlock];
    Results<Out, W> results(outs.size() * layout.numel() * sizeof(Out));
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride, n = std::min(task.n, layout.numel() - begin);
      const W* xs = load(x + begin, wide_x, n);
      for (size_t k = 0; k < outs.size(); ++k) {
        const Level<Quantizer, W> level = spread.at(k, task.parameter);
        W* to = results.target(outs[k] + begin);
        walk.by_run ? run<Values<0, Quantizer, W>>(level, xs, to, n) : run<Values<1, Quantizer, W>>(level, xs, to, n);
        results.finish(outs[k] + begin, n);
      }
    }
  });
}

// Sums over a channel of the terms that belong to its scale and its shift, one of each per level and channel.
struct ChannelSums {
  std::vector<double> scale, shift;
};

// grad_x = sum over levels of their terms, added in W in the order of the levels; returns the channel sums.
template <class Quantizer, class T, class Grad, class W = wide_t<T>>
ChannelSums backward_loop(Layout layout, const std::vector<Level<Quantizer, W>>& given,
                          const std::vector<const Grad*>& grads, const T* x, T* grad_x) {
  const Walk walk(layout);
  const SpreadLevels<Quantizer, W> spread(walk, given);
  const int64_t stride = walk.tasks * walk.sums_per_task();
  std::vector<double> to_scale(given.size() * stride), to_shift(given.size() * stride);
  walk.for_each_task([&](const Task& task, int64_t index) {
    alignas(64) W wide_x[kBlock], wide_grad[kBlock];
    Results<T, W> results(layout.numel() * sizeof(T));
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride, n = std::min(task.n, layout.numel() - begin);
      const W* xs = load(x + begin, wide_x, n);
      const Ahead next_x{reinterpret_cast<const char*>(x + begin + n), sizeof(T)};
      for (int64_t i = 0; given.size() > 1 && i < n; i += kLanes) next_x.fetch(i);
      W* sum = results.target(grad_x + begin);
      for (size_t k = 0; k < given.size(); ++k) {
        const Level<Quantizer, W> level = spread.at(k, task.parameter);
        const Grad* next = k + 1 < given.size() ? grads[k + 1] + begin : grads[0] + begin + n;
        const Ahead ahead{reinterpret_cast<const char*>(next), sizeof(Grad)};
        const W* gs = load(grads[k] + begin, wide_grad, n);
        const int64_t slot = k * stride + index * walk.sums_per_task();
        const auto add = [&](auto body) {
          run<decltype(body)>(level, gs, xs, sum, &to_scale[slot], &to_shift[slot], n, ahead);
        };
        if (walk.by_run) {
          k == 0 ? add(GradientsByRun<false, Quantizer, W>{}) : add(GradientsByRun<true, Quantizer, W>{});
        } else {
          k == 0 ? add(GradientsByColumn<false, Quantizer, W>{}) : add(GradientsByColumn<true, Quantizer, W>{});
        }
      }
      results.finish(grad_x + begin, n);
    }
  });
  ChannelSums sums;
  for (size_t k = 0; k < given.size(); ++k)
    for (int64_t c = 0; c < layout.channels; ++c) {
      sums.scale.push_back(walk.channel_sum(&to_scale[k * stride], c));
      sums.shift.push_back(walk.channel_sum(&to_shift[k * stride], c));
    }
  return sums;
}

}  // namespace mbq
