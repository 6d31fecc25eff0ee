// The CPU loop of every elementwise op with per-channel parameters: channel indexing, tails, threads, fixed-order sums.
//
// Memory is walked in blocks of at most kBlock elements that stay in the first-level cache: one read of x serves every
// bit-width. Two walks cover all layouts. By run: the `inner` elements of one channel lie together, a block has one
// scale. By column: they do not (channels_last), so the parameters are spread over one period of memory and a block
// has a has a scale for every element. Sums: 16 float lanes a block by run, double by column; the blocks and the order
// in which their sums are added are fixed, so results do not depend on threads or instruction set.
#pragma once

#include "../quant_math.h"
#include "../tensor.h"
#include "isa.h"

namespace mbq {

constexpr int64_t kBlock = 1024;
constexpr int64_t kLanes = 16;
constexpr int64_t kShortRun = 16;      // shorter runs are walked by column
constexpr int64_t kRowGroup = 256;     // rows of one task by column, whose column sums are kept together
constexpr int64_t kGrain = 1 << 15;    // elements worth a thread

// One bit-width: its arithmetic and its parameters, (channels,) each; shift is the offset or zero point.
template <class Quantizer, class W>
struct Level {
  Quantizer quantizer;
  const W* scale;
  const W* shift;
};

// ---------------------------------------------------------------------------------------------- inner loops

template <class T, class W>
struct Load {
  MBQ_HD void operator()(const T* __restrict from, W* __restrict to, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<W>(from[i]);
  }
};

template <class T, class W>
struct Store {
  MBQ_HD void operator()(const W* __restrict from, T* __restrict to, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]);
  }
};

template <class W>
struct Add {
  MBQ_HD void operator()(const W* __restrict from, W* __restrict to, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  }
};

// One sum of the block, in kLanes lanes.
template <class W>
struct LaneSum {
  MBQ_HD void operator()(const W* __restrict from, double* total, int64_t n) const {
    W lane[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) lane[j] += from[i + j];
    for (int64_t j = 0; i + j < n; ++j) lane[j] += from[i + j];
    double sum = 0;
    for (int64_t j = 0; j < kLanes; ++j) sum += lane[j];
    *total += sum;
  }
};

// One sum per column.
template <class W>
struct ColumnSum {
  MBQ_HD void operator()(const W* __restrict from, double* __restrict totals, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) totals[i] += static_cast<double>(from[i]);
  }
};

// Step 0: one scale and shift for the block; step 1: one for every element.
template <int step, class Quantizer, class W>
struct Values {
  MBQ_HD void operator()(Level<Quantizer, W> level, const W* __restrict x, W* __restrict out, int64_t n) const {
    for (int64_t i = 0; i < n; ++i)
      out[i] = level.quantizer.value(x[i], level.scale[i * step], level.shift[i * step]);
  }
};

// to_shift is written only where there are shifts.
template <int step, bool shifted, class Quantizer, class W>
struct Gradients {
  MBQ_HD void operator()(Level<Quantizer, W> level, const W* __restrict grad, const W* __restrict x,
                         W* __restrict grad_x, W* __restrict to_scale, W* __restrict to_shift, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      const Terms<W> terms = level.quantizer.terms(grad[i], x[i], level.scale[i * step], level.shift[i * step]);
      grad_x[i] = terms.x;
      to_scale[i] = terms.scale;
      if constexpr (shifted) to_shift[i] = terms.shift;
    }
  }
};

// A block of storage in the arithmetic's dtype: float and double are read where they lie.
template <class T, class W>
inline const W* load(const T* from, W* buffer, int64_t n) {
  if constexpr (std::is_same_v<T, W>) {
    return from;
  } else {
    run<Load<T, W>>(from, buffer, n);
    return buffer;
  }
}

template <class T, class W>
inline void store(const W* from, T* to, int64_t n) {
  if constexpr (!std::is_same_v<T, W>) run<Store<T, W>>(from, to, n);
}

// Where results in the arithmetic's dtype go: their own memory where that is the storage type, else the buffer.
template <class T, class W>
inline W* target(T* to, W* buffer) {
  if constexpr (std::is_same_v<T, W>) {
    return to;
  } else {
    return buffer;
  }
}

// ---------------------------------------------------------------------------------------------- walks

// Blocks of equal parameters that one thread does in order: block r is [begin + r * stride, + n) within numel.
struct Task {
  int64_t begin, stride, rows, n;
  int64_t parameter;  // index of the first element's scale: a channel by run, a column by column
};

struct Walk {
  Layout layout;
  bool by_run;
  int64_t period;  // by column: elements after which the channels repeat, many times C * inner where that is small
  int64_t pieces;  // tasks a run, or a row of `period` elements
  int64_t tasks;

  explicit Walk(Layout l) : layout(l), by_run(l.channels == 1 || l.inner >= kShortRun) {
    const int64_t columns = std::max<int64_t>(1, l.channels * l.inner);
    period = by_run ? l.inner : columns * std::max<int64_t>(1, kBlock / columns);
    pieces = (period + kBlock - 1) / kBlock;
    tasks = by_run ? l.outer * l.channels * pieces : (rows() + kRowGroup - 1) / kRowGroup * pieces;
  }

  int64_t rows() const { return (layout.numel() + period - 1) / period; }

  Task task(int64_t index) const {
    const int64_t major = index / pieces, at = index % pieces * kBlock, n = std::min(kBlock, period - at);
    if (by_run) return {major * period + at, 0, 1, n, major % layout.channels};
    return {major * kRowGroup * period + at, period, std::min(kRowGroup, rows() - major * kRowGroup), n, at};
  }

  // One parameter a channel as the walk indexes it: as it is by run, spread over one period by column.
  template <class W>
  std::vector<W> spread(const W* parameter) const {
    if (by_run) return std::vector<W>(parameter, parameter + layout.channels);
    std::vector<W> columns(period);
    for (int64_t i = 0; i < period; ++i) columns[i] = parameter[i / layout.inner % layout.channels];
    return columns;
  }

  int64_t sums_per_task() const { return by_run ? 1 : kBlock; }

  // The sum of one channel's partial sums, in the order of memory.
  double channel_sum(const double* partial, int64_t channel) const {
    double sum = 0;
    if (by_run) {
      for (int64_t run = channel; run < layout.outer * layout.channels; run += layout.channels)
        for (int64_t piece = 0; piece < pieces; ++piece) sum += partial[run * pieces + piece];
      return sum;
    }
    for (int64_t group = 0; group < tasks / pieces; ++group)
      for (int64_t first = channel * layout.inner; first < period; first += layout.channels * layout.inner)
        for (int64_t i = first; i < first + layout.inner; ++i) sum += partial[group * pieces * kBlock + i];
    return sum;
  }

  template <class Body>
  void for_each_task(const Body& body) const {
    if (layout.numel() == 0) return;
    const int64_t grain = std::max<int64_t>(1, kGrain * tasks / layout.numel());
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) body(task(index), index);
    });
  }
};

// The levels with their parameters spread as the walk wants them, and what keeps those alive.
template <class Quantizer, class W>
struct SpreadLevels {
  std::vector<std::vector<W>> storage;
  std::vector<Level<Quantizer, W>> levels;

  SpreadLevels(const Walk& walk, const std::vector<Level<Quantizer, W>>& given) : levels(given) {
    const std::vector<W> none(walk.layout.channels);
    for (Level<Quantizer, W>& level : levels) {
      storage.push_back(walk.spread(level.scale));
      level.scale = storage.back().data();
      storage.push_back(walk.spread(level.shift ? level.shift : none.data()));
      level.shift = storage.back().data();
    }
  }

  Level<Quantizer, W> at(size_t k, int64_t parameter) const {
    return {levels[k].quantizer, levels[k].scale + parameter, levels[k].shift + parameter};
  }
};

// ---------------------------------------------------------------------------------------------- forward, backward

// outs[k] = x through level k, for every level from one read of x.
template <class Quantizer, class T, class Out, class W = wide_t<T>>
void forward_loop(Layout layout, const std::vector<Level<Quantizer, W>>& given, const T* x,
                  const std::vector<Out*>& outs) {
  const Walk walk(layout);
  const SpreadLevels<Quantizer, W> spread(walk, given);
  walk.for_each_task([&](const Task& task, int64_t) {
    alignas(64) W wide_x[kBlock], values[kBlock];
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride, n = std::min(task.n, layout.numel() - begin);
      const W* xs = load(x + begin, wide_x, n);
      for (size_t k = 0; k < outs.size(); ++k) {
        const Level<Quantizer, W> level = spread.at(k, task.parameter);
        W* to = target(outs[k] + begin, values);
        walk.by_run ? run<Values<0, Quantizer, W>>(level, xs, to, n) : run<Values<1, Quantizer, W>>(level, xs, to, n);
        store(to, outs[k] + begin, n);
      }
    }
  });
}

// Sums over a channel of the terms that belong to its scale and its shift, one of each per level and channel.
struct ChannelSums {
  std::vector<double> scale, shift;
};

// Terms of one block in W, and their sums: added to one number by run, to one per column by column.
template <int step, bool shifted, class Quantizer, class W>
void gradient_block(const Level<Quantizer, W>& level, const W* grad, const W* x, W* grad_x, double* to_scale,
                    double* to_shift, int64_t n) {
  alignas(64) W scale_terms[kBlock], shift_terms[kBlock];
  using Sum = std::conditional_t<step == 0, LaneSum<W>, ColumnSum<W>>;
  run<Gradients<step, shifted, Quantizer, W>>(level, grad, x, grad_x, scale_terms, shift_terms, n);
  run<Sum>(scale_terms, to_scale, n);
  if constexpr (shifted) run<Sum>(shift_terms, to_shift, n);
}

// grad_x = sum over levels of their terms, added in W in the order of the levels; returns the channel sums.
template <class Quantizer, class T, class Grad, class W = wide_t<T>>
ChannelSums backward_loop(Layout layout, const std::vector<Level<Quantizer, W>>& given,
                          const std::vector<const Grad*>& grads, const T* x, T* grad_x) {
  const Walk walk(layout);
  const SpreadLevels<Quantizer, W> spread(walk, given);
  const bool shifted = given[0].shift != nullptr;
  const auto block = walk.by_run ? shifted ? gradient_block<0, true, Quantizer, W> : gradient_block<0, false, Quantizer, W>
                     : shifted   ? gradient_block<1, true, Quantizer, W>
                                 : gradient_block<1, false, Quantizer, W>;
  const int64_t stride = walk.tasks * walk.sums_per_task();
  std::vector<double> to_scale(given.size() * stride), to_shift(shifted ? to_scale.size() : 0);
  walk.for_each_task([&](const Task& task, int64_t index) {
    alignas(64) W wide_x[kBlock], wide_grad[kBlock], total[kBlock], more[kBlock];
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t begin = task.begin + row * task.stride, n = std::min(task.n, layout.numel() - begin);
      const W* xs = load(x + begin, wide_x, n);
      W* sum = target(grad_x + begin, total);
      for (size_t k = 0; k < given.size(); ++k) {
        const W* gs = load(grads[k] + begin, wide_grad, n);
        const int64_t slot = k * stride + index * walk.sums_per_task();
        block(spread.at(k, task.parameter), gs, xs, k == 0 ? sum : more, to_scale.data() + slot,
              to_shift.data() + (shifted ? slot : 0), n);
        if (k > 0) run<Add<W>>(more, sum, n);
      }
      store(sum, grad_x + begin, n);
    }
  });
  ChannelSums sums;
  for (size_t k = 0; k < given.size(); ++k)
    for (int64_t c = 0; c < layout.channels; ++c) {
      sums.scale.push_back(walk.channel_sum(to_scale.data() + k * stride, c));
      if (shifted) sums.shift.push_back(walk.channel_sum(to_shift.data() + k * stride, c));
    }
  return sums;
}

}  // namespace mbq
