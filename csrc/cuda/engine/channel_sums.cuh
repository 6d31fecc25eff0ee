// The gradients of the parameters of a channel: partial sums of the teams of tiles.cuh, and what the last team makes of
// them. Host code too: the tests run it there.
#pragma once

#include "elementwise.cuh"

namespace mbq::cuda {

// What `lane` of `lanes` adds of `count` partial sums that lie `apart`: eight loads are in flight at once.
MBQ_HD double strided_sum(const double* from, unsigned count, unsigned apart, unsigned lane, unsigned lanes) {
  double sum = 0.0;
#pragma unroll 1
  for (unsigned first = lane; first < count; first += 8 * lanes) {
    double parts[8];
#pragma unroll
    for (unsigned j = 0; j < 8; ++j) {
      const unsigned e = first + j * lanes;
      parts[j] = e < count ? load_partial(from + int64_t{e} * apart) : 0.0;
    }
#pragma unroll
    for (unsigned j = 0; j < 8; ++j) sum += parts[j];
  }
  return sum;
}

// gradient[k][c] = factor[k] * the sum of level k over channel c; over unit[k][c], where there are units, if it is that
// of a scale. together: all levels share one gradient, to which they add in their order.
template <template <class> class Quantizer, class T, class Grad, int slots>
struct BackwardJob : Job<Quantizer, T, Grad, slots> {
  static constexpr int kInFlight = slots == 1 ? 2 : 1;  // of x and of every gradient
  static constexpr int kTile = kWarpLanes * BackwardJob::kWidth * kInFlight;
  T* grad_x;
  double* partial;  // (scale, shift if there are shifts) x levels x tiles.sums()
  unsigned* counters;
  double factor[slots];
  float* scale_gradient[slots];
  float* shift_gradient[slots];
  bool together;

  MBQ_HD int rows() const { return this->shifted() ? 2 * this->levels : this->levels; }
  MBQ_HD double* partials(int row) const { return partial + row * this->tiles.sums(); }

  // Of row `row` and a channel: what `lane` of `lanes` adds, in the order of memory.
  MBQ_HD double share_of_sum(int row, unsigned channel, unsigned lane, unsigned lanes) const {
    const Tiles& tiles = this->tiles;
    const double* from = partials(row) + int64_t{channel} * tiles.per_run;
    const unsigned count = tiles.per_run, apart = tiles.channels * tiles.per_run;
    const bool flat = tiles.repeats == 1 || count == 1;  // one row of sums, side by side or apart
    double sum = 0.0;
#pragma unroll 1
    for (unsigned repeat = 0; repeat < (flat ? 1 : tiles.repeats); ++repeat)
      sum += strided_sum(from + int64_t{repeat} * apart, count == 1 ? tiles.repeats : count, count == 1 ? apart : 1,
                         lane, lanes);
    return sum;
  }

  // Writes the gradient that row `row` gives; carried is what rows of one gradient hand on, 0 at first.
  MBQ_HD void write_gradient(int row, unsigned channel, double sum, double& carried) const {
    const bool is_scale = row < this->levels;
    const int k = is_scale ? row : row - this->levels;
    double total = factor[k] * sum;
    if (is_scale && together) {
      total = carried += total;
      if (k + 1 < this->levels) return;
    }
    const int to = is_scale && together ? 0 : k;
    if (is_scale && this->unit[0] != nullptr) total /= this->unit[to][channel];
    (is_scale ? scale_gradient : shift_gradient)[to][channel] = static_cast<float>(total);
  }
};

// The channels of a block by column, and what its threads do with sums in shared memory.
struct Strip {
  const Tiles& tiles;
  unsigned group, at, first, channels;  // of rows; the strip; its first channel; how many it has

  MBQ_HD Strip(const Tiles& t, unsigned block) : tiles(t) {
    group = block / t.strips;
    at = block - group * t.strips;
    first = at * t.strip;
    channels = t.channels - first < t.strip ? t.channels - first : t.strip;
  }

  // The partial sum of channel c of the strip from values that lie as the block's columns and rows do.
  MBQ_HD void write_partial(double* partials, const float* values, unsigned c) const {
    const unsigned inner = static_cast<unsigned>(tiles.inner);
    double sum = 0.0;
#pragma unroll 1
    for (unsigned sub = 0; sub < tiles.subs; ++sub) {
#pragma unroll 1
      for (unsigned j = 0; j < inner; ++j) sum += static_cast<double>(values[sub * tiles.width + c * inner + j]);
    }
    partials[int64_t{group} * tiles.channels + first + c] = sum;
  }

  // What thread `thread` of `threads` adds of the partial sums of a channel, and the sum of all parts of channel c.
  template <class Work>
  MBQ_HD double part(const Work& job, int row, unsigned thread, unsigned threads) const {
    const unsigned sub = thread / channels, subs = threads / channels;
    return sub < subs ? job.share_of_sum(row, first + thread - sub * channels, sub, subs) : 0.0;
  }
  MBQ_HD double total(const double* parts, unsigned c) const {
    double sum = 0.0;
#pragma unroll 1
    for (unsigned sub = 0; sub < kTeamThreads / channels; ++sub) sum += parts[sub * channels + c];
    return sum;
  }
};

}  // namespace mbq::cuda
