// One block of round-clamp and its least significant bits: what the compiler makes vectors of.
#pragma once

#include "block.h"

namespace mbq {

// What one block adds up to: the sum of |B|, how many B are not 0, and whether u was outside [0, 1] or NaN anywhere.
// Integers: their sums are exact in any order, so that the compiler may choose one.
struct BlockCounts {
  int penalty = 0, nonzero = 0;
  bool outside = false;
};

// The bits of u as an integer: no larger than those of 1 where u is within [0, 1] and no -0, which unit_position never
// gives. Larger ones are negative, above 1 or NaN.
template <class W>
MBQ_HD auto position_bits(W u) {
  std::conditional_t<sizeof(W) == 4, uint32_t, uint64_t> bits;
  std::memcpy(&bits, &u, sizeof(bits));
  return bits;
}

// n elements with a limit and a scale of codes each (step 1) or one for all (step 0). A call with u outside [0, 1] ends
// in an error: what is computed from it does not matter.
template <LsbOut out, bool counts, int step, bool mirrored, class W>
MBQ_HD void round_clamp_run(const RoundClamp<W>& any, const W* __restrict limits, const W* __restrict scales,
                            const W* __restrict x, W* __restrict to, int64_t n, BlockCounts* found) {
  const RoundClamp<W> quantizer = any.template known<mirrored>();
  const W one = step == 0 ? limits[0] : W(0), scale = step == 0 ? scales[0] : W(0);
  int penalty = 0, nonzero = 0;
  decltype(position_bits(one)) furthest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const W u = quantizer.position(x[i], step == 0 ? one : limits[i]);
    furthest = std::max(furthest, position_bits(u));
    if (out == LsbOut::value) to[i] = quantizer.value(u, x[i], step == 0 ? scale : scales[i]);
    if (out != LsbOut::residual && !counts) continue;
    const W residual = quantizer.residual(u);
    if (out == LsbOut::residual) to[i] = residual;
    if (!counts) continue;
    const int lsb = static_cast<int>(std::abs(residual));
    penalty += lsb;
    nonzero += lsb < 1 ? lsb : 1;
  }
  found->penalty += penalty;
  found->nonzero += nonzero;
  found->outside |= furthest > position_bits(W(1));
}

template <LsbOut out, bool counts, class W>
struct RoundClampByRun {
  MBQ_HD void operator()(Level<RoundClamp<W>, W> level, Block block, const W* x, W* to, BlockCounts* found) const {
    const RoundClamp<W> quantizer = level.quantizer;
    for (int64_t run = 0, channel = block.channel; run < block.count; ++run) {
      const int64_t at = run * block.length;
      const W *limit = level.scale + channel, *scale = level.shift + channel;
      if (quantizer.mirrored()) {
        round_clamp_run<out, counts, 0, true>(quantizer, limit, scale, x + at, to + at, block.length, found);
      } else {
        round_clamp_run<out, counts, 0, false>(quantizer, limit, scale, x + at, to + at, block.length, found);
      }
      if (++channel == block.channels) channel = 0;
    }
  }
};

template <LsbOut out, bool counts, class W>
struct RoundClampByColumn {
  MBQ_HD void operator()(Level<RoundClamp<W>, W> level, Block block, const W* x, W* to, BlockCounts* found) const {
    const RoundClamp<W> quantizer = level.quantizer;
    if (quantizer.mirrored()) {
      round_clamp_run<out, counts, 1, true>(quantizer, level.scale, level.shift, x, to, block.length, found);
    } else {
      round_clamp_run<out, counts, 1, false>(quantizer, level.scale, level.shift, x, to, block.length, found);
    }
  }
};

// grad_x = grad + slope sign(B) d|x|/dx, grad 0 where there is none.
template <bool task, int step, bool mirrored, class W>
MBQ_HD void lsb_gradient_run(const RoundClamp<W>& any, const W* __restrict limits, const W* __restrict slopes,
                             const W* __restrict grad, const W* __restrict x, W* __restrict grad_x, int64_t n) {
  const RoundClamp<W> quantizer = any.template known<mirrored>();
  const W limit = step == 0 ? limits[0] : W(0), slope = step == 0 ? slopes[0] : W(0);
  for (int64_t i = 0; i < n; ++i)
    grad_x[i] =
        quantizer.gradient(task ? grad[i] : W(0), x[i], step == 0 ? limit : limits[i], step == 0 ? slope : slopes[i]);
}

template <bool task, class W>
struct LsbGradientByRun {
  MBQ_HD void operator()(Level<RoundClamp<W>, W> level, Block block, const W* grad, const W* x, W* grad_x) const {
    const RoundClamp<W> quantizer = level.quantizer;
    for (int64_t run = 0, channel = block.channel; run < block.count; ++run) {
      const int64_t at = run * block.length;
      const W *limit = level.scale + channel, *slope = level.shift + channel, *from = task ? grad + at : nullptr;
      if (quantizer.mirrored()) {
        lsb_gradient_run<task, 0, true>(quantizer, limit, slope, from, x + at, grad_x + at, block.length);
      } else {
        lsb_gradient_run<task, 0, false>(quantizer, limit, slope, from, x + at, grad_x + at, block.length);
      }
      if (++channel == block.channels) channel = 0;
    }
  }
};

template <bool task, class W>
struct LsbGradientByColumn {
  MBQ_HD void operator()(Level<RoundClamp<W>, W> level, Block block, const W* grad, const W* x, W* grad_x) const {
    const RoundClamp<W> quantizer = level.quantizer;
    if (quantizer.mirrored()) {
      lsb_gradient_run<task, 1, true>(quantizer, level.scale, level.shift, grad, x, grad_x, block.length);
    } else {
      lsb_gradient_run<task, 1, false>(quantizer, level.scale, level.shift, grad, x, grad_x, block.length);
    }
  }
};

}  // namespace mbq
