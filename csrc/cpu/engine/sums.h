// Two sums per channel over a tensor, of some `first` of every element and of its square: for moments.
#pragma once

#include "loop.h"

namespace mbq {

// The block's sums of runs, each into its place.
template <class Summand, class W>
struct SumsByRun {
  MBQ_HD void operator()(Level<Summand, W> level, Block block, const W* __restrict x, double* sum,
                         double* square) const {
    using Sum = typename Summand::Sum;
    for (int64_t run = 0, channel = block.channel; run < block.count; ++run) {
      const W scale = level.scale[channel], shift = level.shift ? level.shift[channel] : W(0);
      alignas(64) Sum sums[kLanes] = {}, squares[kLanes] = {};
      int64_t i = 0;
      for (; i + kLanes <= block.length; i += kLanes)
        for (int64_t j = 0; j < kLanes; ++j) {
          const Sum value = level.quantizer.first(x[i + j], scale, shift);
          sums[j] += value;
          squares[j] += value * value;
        }
      for (int64_t j = 0; i + j < block.length; ++j) {
        const Sum value = level.quantizer.first(x[i + j], scale, shift);
        sums[j] += value;
        squares[j] += value * value;
      }
      sum[run] += lane_sum(sums);
      square[run] += lane_sum(squares);
      x += block.length;
      if (++channel == block.channels) channel = 0;
    }
  }
};

// A sum for every element.
template <class Summand, class W>
struct SumsByColumn {
  MBQ_HD void operator()(Level<Summand, W> level, Block block, const W* __restrict x, double* __restrict sum,
                         double* __restrict square) const {
    for (int64_t i = 0; i < block.length; ++i) {
      const double value = static_cast<double>(level.quantizer.first(x[i], level.scale[i], level.shift[i]));
      sum[i] += value;
      square[i] += value * value;
    }
  }
};

template <class Summand, class W>
struct SumsWork : Work<Summand, W> {
  mutable std::vector<double> sums, squares;  // partial, of a level after the other; each has one writer

  SumsWork(Layout layout, const std::vector<Level<Summand, W>>& levels)
      : Work<Summand, W>(layout, levels), sums(levels.size() * this->walk.partial_sums()), squares(sums.size()) {}

  void add(const Task& task, const Block& block, const W* xs) const {
    for (size_t k = 0; k < this->levels.size(); ++k) {
      const int64_t slot = k * this->walk.partial_sums() + task.slot;
      if (this->walk.by_run) {
        run<SumsByRun<Summand, W>>(this->at(k, block), block, xs, &sums[slot], &squares[slot]);
      } else {
        run<SumsByColumn<Summand, W>>(this->at(k, block), block, xs, &sums[slot], &squares[slot]);
      }
    }
  }

  double sum(const std::vector<double>& partial, size_t k, int64_t channel) const {
    return this->walk.channel_sum(partial.data() + k * this->walk.partial_sums(), channel);
  }
};

// Several works over one read of x.
template <class T, class... Works>
struct JointWork {
  Walk walk;
  const T* x;
  std::tuple<const Works&...> works;

  JointWork(Layout layout, const T* from, const Works&... all) : walk(layout), x(from), works(all...) {}

  void operator()(const Task& task) const {
    using W = wide_t<T>;
    alignas(64) W wide[kBlock];
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride;
      Block block = task.block;
      block.length = std::min(block.length, walk.layout.numel() - begin);
      const W* xs = load(x + begin, wide, block.n());
      std::apply([&](const auto&... work) { (work.add(task, block, xs), ...); }, works);
    }
  }
};

template <class T, class... Works>
void sums_loop(Layout layout, const T* x, const Works&... works) {
  const std::vector<JointWork<T, Works...>> joint{{layout, x, works...}};
  for_each_task(joint, [](const auto& work, const Task& task) { work(task); });
}

}  // namespace mbq
