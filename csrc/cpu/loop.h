// The CPU loop of every elementwise op with per-channel parameters: channel indexing, tails, threads, fixed-order sums.
//
// Memory is walked in blocks of at most kBlock elements that stay in the first-level cache: one read of x serves every
// bit-width. Two walks cover all layouts. By run: the `inner` elements of one channel lie together, a block has one
// scale. By column: they do not (channels_last), so the parameters are spread over one period of memory and a block
// has a has a scale for every element. Sums: 32 float lanes a block by run, double by column; the lanes, the blocks
// and the order in which their sums are added are fixed, so results do not depend on threads or instruction set.
#pragma once

#include <cstring>

#include "../quant_math.h"
#include "../tensor.h"
#include "isa.h"

namespace mbq {

constexpr int64_t kBlock = 1024;
constexpr int64_t kLanes = 32;
constexpr int64_t kShortRun = 64;      // shorter runs are walked by column: a run costs some 20 ns to begin
constexpr int64_t kRowGroup = 256;     // rows of one task by column, whose column sums are kept together
constexpr int64_t kGrain = 1 << 15;    // elements worth a thread
constexpr int64_t kCacheBytes = 1 << 25;  // results beyond this do not find their readers in the cache

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

// Step 0: one scale and shift for the block; step 1: one for every element.
template <int step, class Quantizer, class W>
struct Values {
  MBQ_HD void operator()(Level<Quantizer, W> level, const W* __restrict x, W* __restrict out, int64_t n) const {
    for (int64_t i = 0; i < n; ++i)
      out[i] = level.quantizer.value(x[i], level.scale[i * step], level.shift[i * step]);
  }
};

// kLanes elements of a block that has one scale: gradients of x to memory (`more`: added to what is there), the other
// terms to the lanes' sums. The compiler makes vectors of this loop; the lanes are the same on every processor.
template <bool more, class Quantizer, class W>
MBQ_HD void lanes_step(const Quantizer& quantizer, W scale, W shift, const W* __restrict grad, const W* __restrict x,
                       W* __restrict grad_x, W* __restrict to_scale, W* __restrict to_shift) {
  for (int64_t j = 0; j < kLanes; ++j) {
    const Terms<W> terms = quantizer.terms(grad[j], x[j], scale, shift);
    grad_x[j] = more ? grad_x[j] + terms.x : terms.x;
    to_scale[j] += terms.scale;
    to_shift[j] += terms.shift;
  }
}

// Halves, not one after the other: for a short run the chain of additions would take longer than the run.
template <class W>
MBQ_HD double lane_sum(const W* lanes) {
  double sum[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) sum[j] = lanes[j];
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

// The block to fetch while another is computed. The processor's own prefetching follows one stream a load instruction and
// ends with the page; here one instruction reads a stream per bit-width, and every block begins a page.
struct Ahead {
  const char* from;
  int64_t size;  // of an element

  MBQ_HD void fetch(int64_t i) const {
    for (int64_t line = 0; line < kLanes * size; line += 64) __builtin_prefetch(from + i * size + line);
  }
};

// A block with one scale; its sums are added to *to_scale and *to_shift.
template <bool more, class Quantizer, class W>
struct GradientsByRun {
  MBQ_HD void operator()(Level<Quantizer, W> level, const W* __restrict grad, const W* __restrict x,
                         W* __restrict grad_x, double* to_scale, double* to_shift, int64_t n, Ahead ahead) const {
    const Quantizer quantizer = level.quantizer;
    const W scale = *level.scale, shift = *level.shift;
    alignas(64) W scale_lane[kLanes] = {}, shift_lane[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      ahead.fetch(i);
      lanes_step<more>(quantizer, scale, shift, grad + i, x + i, grad_x + i, scale_lane, shift_lane);
    }
    if (i < n) {
      // the tail in full width: absent elements lie at v = 0 and have no gradient
      alignas(64) W tail_grad[kLanes] = {}, tail_x[kLanes], tail_grad_x[kLanes] = {};
      for (int64_t j = 0; j < kLanes; ++j) tail_x[j] = shift;
      const size_t bytes = (n - i) * sizeof(W);
      std::memcpy(tail_grad, grad + i, bytes);
      std::memcpy(tail_x, x + i, bytes);
      if (more) std::memcpy(tail_grad_x, grad_x + i, bytes);
      lanes_step<more>(quantizer, scale, shift, tail_grad, tail_x, tail_grad_x, scale_lane, shift_lane);
      std::memcpy(grad_x + i, tail_grad_x, bytes);
    }
    *to_scale += lane_sum(scale_lane);
    *to_shift += lane_sum(shift_lane);
  }
};

// A block with a scale, and sums, for every element.
template <bool more, class Quantizer, class W>
struct GradientsByColumn {
  MBQ_HD void operator()(Level<Quantizer, W> level, const W* __restrict grad, const W* __restrict x,
                         W* __restrict grad_x, double* __restrict to_scale, double* __restrict to_shift,
                         int64_t n, Ahead) const {
    const Quantizer quantizer = level.quantizer;
    const W* __restrict scale = level.scale;
    const W* __restrict shift = level.shift;
    for (int64_t i = 0; i < n; ++i) {
      const Terms<W> terms = quantizer.terms(grad[i], x[i], scale[i], shift[i]);
      grad_x[i] = more ? grad_x[i] + terms.x : terms.x;
      to_scale[i] += static_cast<double>(terms.scale);
      to_shift[i] += static_cast<double>(terms.shift);
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

// Results of blocks on their way to memory. A result larger than the cache goes past it: an ordinary store first reads
// the line it overwrites, a third of the traffic of a forward pass.
template <class T, class W>
struct Results {
  bool past_cache;
  alignas(64) W values[kBlock];
  alignas(64) T rounded[kBlock];

  explicit Results(int64_t bytes) : past_cache(kHasStreams && bytes > kCacheBytes) {}

  // Where to compute the block that belongs at `to`: there, if nothing has to be done to it afterwards.
  W* target(T* to) {
    if constexpr (std::is_same_v<T, W>) {
      return past_cache ? values : to;
    } else {
      return values;
    }
  }

  void finish(T* to, int64_t n) {
    const T* from = rounded;
    if constexpr (std::is_same_v<T, W>) {
      if (!past_cache) return;
      from = values;
    } else {
      run<Store<T, W>>(static_cast<const W*>(values), past_cache ? rounded : to, n);
      if (!past_cache) return;
    }
    stream(from, to, n * sizeof(T));
  }
};

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

  // Task `piece` of run, or row group, `major`.
  Task task(int64_t major, int64_t piece) const {
    const int64_t at = piece * kBlock, n = std::min(kBlock, period - at);
    if (by_run) return {major * period + at, 0, 1, n, major % layout.channels};
    return {major * kRowGroup * period + at, period, std::min(kRowGroup, rows() - major * kRowGroup), n, at};
  }

  // One parameter a channel as the walk indexes it: as it is by run, spread over one period by column.
  template <class W>
  std::vector<W> spread(const W* parameter) const {
    if (by_run) return std::vector<W>(parameter, parameter + layout.channels);
    std::vector<W> columns(period);
    for (auto at = columns.begin(); at != columns.end();)
      for (int64_t c = 0; c < layout.channels; ++c) at = std::fill_n(at, layout.inner, parameter[c]);
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
      int64_t major = begin / pieces, piece = begin % pieces;
      for (int64_t index = begin; index < end; ++index) {
        body(task(major, piece), index);
        if (++piece == pieces) piece = 0, ++major;
      }
      finish_streams();
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
      W* sum = results.target(grad_x + begin);
      for (size_t k = 0; k < given.size(); ++k) {
        const Level<Quantizer, W> level = spread.at(k, task.parameter);
        const Grad* next = k + 1 < given.size() ? grads[k + 1] + begin : grads[0] + begin + n;
        const Ahead ahead{reinterpret_cast<const char*>(next), sizeof(Grad)};
        const W* gs = load(grads[k] + begin, wide_grad, n);
        const int64_t slot = k * stride + index * walk.sums_per_task();
        const auto add = [&](auto body) { run<decltype(body)>(level, gs, xs, sum, &to_scale[slot], &to_shift[slot], n, ahead); };
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
