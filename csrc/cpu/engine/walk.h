// How tensors in memory order are cut into blocks and tasks, and where the sums of a channel are.
#pragma once

#include "arguments/tensor.h"
#include "simd/storage.h"

namespace mbq {

constexpr int64_t kRowGroup = 256;   // rows of one task by column, whose column sums are kept together
constexpr int64_t kGrain = 1 << 15;  // elements worth a thread

// What one thread does in order: block r is at [begin + r * stride, + block.n()) within numel.
struct Task {
  int64_t begin, stride, rows;
  Block block;
  int64_t slot;  // of its first partial sum
};

struct Walk {
  Layout layout;
  bool by_run;
  int64_t period;  // by run: a run; by column: elements after which the channels repeat, many C * inner where few
  int64_t group;   // by run: runs that are one block
  int64_t pieces;  // blocks a group of runs, or a row of `period` elements
  int64_t tasks;

  explicit Walk(Layout l) : layout(l), by_run(l.channels <= 1 || l.inner >= kShortRun) {
    const int64_t columns = std::max<int64_t>(1, l.channels * l.inner);
    period = by_run ? l.inner : columns * std::max<int64_t>(1, kBlock / columns);
    group = by_run ? std::max<int64_t>(1, kBlock / std::max<int64_t>(1, period)) : kRowGroup;
    pieces = std::max<int64_t>(1, (period + kBlock - 1) / kBlock);
    tasks = (rows() + group - 1) / group * pieces;
  }

  // By run: runs.
  int64_t rows() const { return by_run ? layout.outer * layout.channels : (layout.numel() + period - 1) / period; }

  // Task `piece` of the group of runs or rows `major`.
  Task task(int64_t major, int64_t piece) const {
    const int64_t first = major * group, at = piece * kBlock, begin = first * period + at;
    const int64_t count = std::min(group, rows() - first), n = std::min(kBlock, period - at);
    if (by_run) return {begin, 0, 1, {first % layout.channels, layout.channels, count, n}, first * pieces + piece};
    return {begin, period, count, {at, period, 1, n}, (major * pieces + piece) * kBlock};
  }

  // Calls body(task) for tasks first .. last.
  template <class Body>
  void each_task(int64_t first, int64_t last, const Body& body) const {
    int64_t major = first / pieces, piece = first % pieces;
    for (int64_t index = first; index < last; ++index) {
      body(task(major, piece));
      if (++piece < pieces) continue;
      piece = 0;
      ++major;
    }
  }

  // How many tasks begin before `element`, if all are equally long.
  int64_t tasks_before(int64_t element) const {
    if (element <= 0) return 0;
    if (element >= layout.numel()) return tasks;
    const int64_t length = std::max<int64_t>(1, layout.numel() / tasks);
    return std::min(tasks, (element + length - 1) / length);
  }

  int64_t partial_sums() const { return by_run ? rows() * pieces : tasks * kBlock; }

  // The sum of one channel's partial sums, in the order of memory.
  double channel_sum(const double* partial, int64_t channel) const {
    double sum = 0;
    if (by_run) {
      for (int64_t run = channel; run < layout.outer * layout.channels; run += layout.channels)
        for (int64_t piece = 0; piece < pieces; ++piece) sum += partial[run * pieces + piece];
      return sum;
    }
    for (int64_t major = 0; major < tasks / pieces; ++major)
      for (int64_t first = channel * layout.inner; first < period; first += layout.channels * layout.inner)
        for (int64_t i = first; i < first + layout.inner; ++i) sum += partial[major * pieces * kBlock + i];
    return sum;
  }
};

// Calls body(tensor, first, last) for ranges of tasks that make up every tensor, in one parallel loop over all their
// elements; a range is one thread's.
template <class Works, class Body>
void for_each_range(const Works& works, const Body& body) {
  std::vector<int64_t> starts{0};
  for (const auto& work : works) starts.push_back(starts.back() + work.walk.layout.numel());
  if (starts.back() == 0) return;
  torch::stable::parallel_for(0, starts.back(), kGrain, [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; i < works.size() && starts[i] < end; ++i) {
      const Walk& walk = works[i].walk;
      body(works[i], walk.tasks_before(begin - starts[i]), walk.tasks_before(end - starts[i]));
    }
    finish_streams();
  });
}

// Calls body(tensor, task) for every task of every tensor, likewise.
template <class Works, class Body>
void for_each_task(const Works& works, const Body& body) {
  for_each_range(works, [&](const auto& work, int64_t first, int64_t last) {
    work.walk.each_task(first, last, [&](const Task& task) { body(work, task); });
  });
}

// K levels over one tensor, their parameters spread as its walk wants them: by run as they are, by column over one
// period.
template <class Quantizer, class W>
struct Work {
  Walk walk;
  bool shifted;  // the levels have shifts
  std::vector<Level<Quantizer, W>> levels;
  std::vector<std::vector<W>> storage;  // of what was spread

  Work(Layout layout, const std::vector<Level<Quantizer, W>>& given)
      : walk(layout), shifted(given[0].shift != nullptr), levels(given) {
    if (walk.by_run) return;
    const std::vector<W> none(layout.channels);
    for (Level<Quantizer, W>& level : levels) {
      level.scale = spread(level.scale);
      level.shift = spread(shifted ? level.shift : none.data());
    }
  }
  Work(Work&&) = default;  // a copy would point into the storage of the original

  const W* spread(const W* parameter) {
    std::vector<W>& columns = storage.emplace_back(walk.period);
    for (auto at = columns.begin(); at != columns.end();)
      for (int64_t c = 0; c < walk.layout.channels; ++c) at = std::fill_n(at, walk.layout.inner, parameter[c]);
    return columns.data();
  }

  // Level k as `block` wants it.
  Level<Quantizer, W> at(size_t k, const Block& block) const {
    if (walk.by_run) return levels[k];
    return {levels[k].quantizer, levels[k].scale + block.channel, levels[k].shift + block.channel};
  }

  // `block` at `begin`, cut off where the tensor ends: the last row by column may be short.
  Block within(Block block, int64_t begin) const {
    block.length = std::min(block.length, walk.layout.numel() - begin);
    return block;
  }
};

}  // namespace mbq
