// One block of at most kBlock elements: what the compiler makes vectors of, for every instruction set.
#pragma once

#include <cstring>

#include "isa.h"
#include "math/quant_math.h"

namespace mbq {

constexpr int64_t kBlock = 1024;
constexpr int64_t kLanes = 32;     // sums of a block that has one scale
constexpr int64_t kShortRun = 32;  // shorter runs are walked by column

// One bit-width: its arithmetic and its parameters, (channels,) each; shift is the offset or zero point, null where
// there is none.
template <class Quantizer, class W>
struct Level {
  Quantizer quantizer;
  const W* scale;
  const W* shift;
};

// The block in hand. By run: `count` runs of `length` elements that follow each other in memory, the first one of
// `channel`, the next one of the next of `channels`. By column: `length` elements with a channel each.
struct Block {
  int64_t channel, channels, count, length;
  int64_t n() const { return count * length; }
};

// A scale and shift for every run. X: W, or a dtype that needs no buffer to be read as such.
template <class Quantizer, class W, class X = W>
struct ValuesByRun {
  MBQ_HD void operator()(Level<Quantizer, W> level, Block block, const X* __restrict x, W* __restrict out) const {
    for (int64_t run = 0, channel = block.channel; run < block.count; ++run) {
      if (level.shift) {
        values(level.quantizer, level.scale[channel], level.shift[channel], x, out, block.length);
      } else {
        values(level.quantizer, level.scale[channel], NoShift{}, x, out, block.length);
      }
      x += block.length;
      out += block.length;
      if (++channel == block.channels) channel = 0;
    }
  }
  template <class Shift>
  MBQ_HD static void values(const Quantizer& quantizer, W scale, Shift shift, const X* __restrict x, W* __restrict out,
                            int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = quantizer.value(static_cast<W>(x[i]), scale, shift);
  }
};

// A scale and shift for every element.
template <class Quantizer, class W, class X = W>
struct ValuesByColumn {
  MBQ_HD void operator()(Level<Quantizer, W> level, Block block, const X* __restrict x, W* __restrict out) const {
    for (int64_t i = 0; i < block.length; ++i)
      out[i] = level.quantizer.value(static_cast<W>(x[i]), level.scale[i], level.shift[i]);
  }
};

// kLanes elements of a run: gradients of x to memory (`more`: added to what is there), the other terms to the lanes'
// sums. The compiler makes vectors of this loop; the lanes are the same on every processor.
template <bool more, bool shifted, class Quantizer, class W, class In>
MBQ_HD void lanes_step(const Quantizer& quantizer, W scale, W shift, const In* __restrict grad, const In* __restrict x,
                       W* __restrict grad_x, W* __restrict to_scale, W* __restrict to_shift) {
  for (int64_t j = 0; j < kLanes; ++j) {
    const Terms<W> terms = quantizer.terms(static_cast<W>(grad[j]), static_cast<W>(x[j]), scale, shift);
    grad_x[j] = more ? grad_x[j] + terms.x : terms.x;
    to_scale[j] += terms.scale();
    if (shifted) to_shift[j] += terms.shift;
  }
}

// Halves, not one after the other: for a short run the chain of additions would take longer than the run.
template <class W>
MBQ_HD double half_lane_sum(W* lanes) {
  for (int64_t j = 0; j < 8; ++j) lanes[j] += lanes[j + 8];
  for (int64_t j = 0; j < 4; ++j) lanes[j] += lanes[j + 4];
  return (static_cast<double>(lanes[0]) + lanes[2]) + (static_cast<double>(lanes[1]) + lanes[3]);
}

template <class W>
MBQ_HD double lane_sum(W* lanes) {
  for (int64_t j = 0; j < 16; ++j) lanes[j] += lanes[j + 16];
  return half_lane_sum(lanes);
}
static_assert(kLanes == 32);

// The block to fetch while another is computed. The processor's own prefetching follows one stream a load instruction
// and ends with the page; here one instruction reads a stream per bit-width, and a block is a page of float32.
struct Ahead {
  const char* from;
  int64_t size;  // of an element

  // Of kLanes elements the first cache line and the last: of float32 all, of half as wide ones the same line twice.
  MBQ_HD void fetch(int64_t i) const {
    __builtin_prefetch(from + i * size);
    __builtin_prefetch(from + (i + kLanes) * size - 64);
  }
};

// out[i] = in[2 i] + in[2 i + 1]
template <class W>
MBQ_HD void add_neighbours(const W* __restrict in, W* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = in[2 * i] + in[2 * i + 1];
}

// Adds to `to` the sum of every one of `rows` rows of kLanes / 2, all rows in one vector loop a halving; both arrays
// are overwritten. Row after row took three times as long as what is summed where runs have 32 elements.
template <class W>
MBQ_HD void lane_sums(W* __restrict lanes, W* __restrict half, int64_t rows, double* __restrict to) {
  if (rows == 1) {
    *to += half_lane_sum(lanes);
    return;
  }
  add_neighbours(lanes, half, 8 * rows);
  add_neighbours(half, lanes, 4 * rows);
  add_neighbours(lanes, half, 2 * rows);
  for (int64_t row = 0; row < rows; ++row) to[row] += static_cast<double>(half[2 * row]) + half[2 * row + 1];
}

// Zero, unknown to the compiler: arrays of known zeros it fills with `rep stos`, which takes 10 ns to begin.
template <class W>
MBQ_HD W unknown_zero() {
  W zero = 0;
  asm("" : "+m"(zero));
  return zero;
}

// One run of n elements, `at` elements into its block; sums go to kLanes / 2 lanes each.
template <bool more, bool shifted, class Quantizer, class W, class In>
MBQ_HD void run_gradients(const Quantizer& quantizer, W scale, W shift, const In* __restrict grad,
                          const In* __restrict x, W* __restrict grad_x, W* __restrict to_scale, W* __restrict to_shift,
                          int64_t n, int64_t at, Ahead ahead) {
  alignas(64) W scale_lane[kLanes], shift_lane[kLanes];
  const W zero = unknown_zero<W>();
  for (int64_t j = 0; j < kLanes; ++j) scale_lane[j] = zero, shift_lane[j] = zero;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    ahead.fetch(at + i);
    lanes_step<more, shifted>(quantizer, scale, shift, grad + i, x + i, grad_x + i, scale_lane, shift_lane);
  }
  if (i < n) {
    // the tail in full width; what the absent elements give is left out
    alignas(64) In tail_grad[kLanes] = {}, tail_x[kLanes] = {};
    alignas(64) W tail_grad_x[kLanes] = {}, tail_scale[kLanes] = {}, tail_shift[kLanes] = {};
    const size_t bytes = (n - i) * sizeof(W);
    std::memcpy(tail_grad, grad + i, (n - i) * sizeof(In));
    std::memcpy(tail_x, x + i, (n - i) * sizeof(In));
    if (more) std::memcpy(tail_grad_x, grad_x + i, bytes);
    lanes_step<more, shifted>(quantizer, scale, shift, tail_grad, tail_x, tail_grad_x, tail_scale, tail_shift);
    std::memcpy(grad_x + i, tail_grad_x, bytes);
    for (int64_t j = 0; i + j < n; ++j) scale_lane[j] += tail_scale[j], shift_lane[j] += tail_shift[j];
  }
  for (int64_t j = 0; j < kLanes / 2; ++j) to_scale[j] = scale_lane[j] + scale_lane[j + kLanes / 2];
  if (shifted)
    for (int64_t j = 0; j < kLanes / 2; ++j) to_shift[j] = shift_lane[j] + shift_lane[j + kLanes / 2];
}

// A scale, and a sum, for every run. shifted: there are shifts, and sums for them.
template <bool more, bool shifted, class Quantizer, class W, class In = W>
struct GradientsByRun {
  MBQ_HD void operator()(Level<Quantizer, W> level, Block block, const In* grad, const In* x, W* grad_x,
                         double* to_scale, double* to_shift, Ahead ahead) const {
    constexpr int64_t most = kBlock / kShortRun * kLanes / 2;
    alignas(64) W scale_lanes[most], shift_lanes[shifted ? most : 1], half[most / 2];
    const Quantizer quantizer = level.quantizer;
    for (int64_t run = 0, channel = block.channel; run < block.count; ++run) {
      const int64_t at = run * block.length;
      run_gradients<more, shifted>(quantizer, level.scale[channel], shifted ? level.shift[channel] : W(0), grad + at,
                                   x + at, grad_x + at, scale_lanes + run * kLanes / 2,
                                   shifted ? shift_lanes + run * kLanes / 2 : nullptr, block.length, at, ahead);
      if (++channel == block.channels) channel = 0;
    }
    lane_sums(scale_lanes, half, block.count, to_scale);
    if (shifted) lane_sums(shift_lanes, half, block.count, to_shift);
  }
};

// A scale, and a sum, for every element.
template <bool more, bool shifted, class Quantizer, class W, class In = W>
struct GradientsByColumn {
  MBQ_HD void operator()(Level<Quantizer, W> level, Block block, const In* __restrict grad, const In* __restrict x,
                         W* __restrict grad_x, double* __restrict to_scale, double* __restrict to_shift, Ahead) const {
    const Quantizer quantizer = level.quantizer;
    const W* __restrict scale = level.scale;
    const W* __restrict shift = level.shift;
    for (int64_t i = 0; i < block.length; ++i) {
      const Terms<W> terms = quantizer.terms(static_cast<W>(grad[i]), static_cast<W>(x[i]), scale[i], shift[i]);
      grad_x[i] = more ? grad_x[i] + terms.x : terms.x;
      to_scale[i] += static_cast<double>(terms.scale());
      if (shifted) to_shift[i] += static_cast<double>(terms.shift);
    }
  }
};

}  // namespace mbq
