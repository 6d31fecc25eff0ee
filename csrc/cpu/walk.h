// How a tensor in memory order is cut into blocks and tasks, and where the sums of a channel are.
#pragma once

#include "block.h"

namespace mbq {

constexpr int64_t kShortRun = 64;    // shorter runs are walked by column: a run costs some 20 ns to begin
constexpr int64_t kRowGroup = 256;   // rows of one task by column, whose column sums are kept together
constexpr int64_t kGrain = 1 << 15;  // elements worth a thread

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

  explicit Walk(Layout l) : layout(l), by_run(l.channels <= 1 || l.inner >= kShortRun) {
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

}  // namespace mbq
