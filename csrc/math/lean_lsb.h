// Round-clamp and its least significant bits without a division, a select or an integer: the codes and residuals of
// RoundClamp (quant_math.h), bit for bit, in half the instructions of a GPU. Host code too: the tests compare the two.
#pragma once

#include "byte_codes.h"

namespace mbq {

// The sum of |B| and the number of B that are not 0: floats, which are exact below 2^24.
struct LsbSums {
  float size = 0.0f, nonzero = 0.0f;
  MBQ_HD void add(float residual) {
    size += fabsf(residual);
    nonzero += fminf(fabsf(residual), 1.0f);
  }
};

// u within [0, 1], NaN to 0: a GPU does it in the instruction that computes u.
MBQ_HD float saturate(float u) {
#if defined(__CUDA_ARCH__)
  return __saturatef(u);
#else
  return within_unit(u);
#endif
}

// Of one bit-width. Codes are kept as kRounder + code, and coarse ones as 2^k (kRounder + code), whose float has
// multiples of 2^k alone. All sums and differences below are exact.
struct LeanRoundClamp {
  float half, centre, steps, highest, coarse_rounder, highest_coarse, zero;

  LeanRoundClamp() = default;  // unset: the room for more in a batch
  MBQ_HD explicit LeanRoundClamp(const RoundClamp<float>& q)
      : half(q.form.half),
        centre(q.form.centre),
        steps(q.steps),
        highest(kRounder + (q.steps - 1)),
        coarse_rounder(kRounder * q.ratio),
        highest_coarse(kRounder * q.ratio + (q.steps - q.ratio)),
        zero(kRounder + q.steps * q.form.centre) {}

  // The quotient of x and a limit is exact by the limit's reciprocal where it decides on a code, |x / limit| >= 2^-10.
  MBQ_HD static bool takes(float limit) { return 0x1p-90f < limit && limit < 0x1p90f; }

  // u = x / limit * half + centre, of |x| where mirrored. The product with half rounds nothing that a code can see.
  template <bool mirrored>
  MBQ_HD float position(float x, InvertedScale limit) const {
    return saturate(fmaf(divide(mirrored ? fabsf(x) : x, limit), half, centre));
  }

  MBQ_HD float code(float u) const { return fminf(fmaf(u, steps, kRounder), highest); }

  // round_clamp_signed times scale
  template <bool mirrored>
  MBQ_HD float value(float u, float x, float scale) const {
    const float level = (code(u) - zero) * scale;
    return mirrored ? copysignf(level, x) : level;
  }

  // base + B; base is 0 or kRounder
  MBQ_HD float residual(float u, float base) const {
    const float coarse = fminf(fmaf(u, steps, coarse_rounder), highest_coarse);
    return code(u) - (coarse - (coarse_rounder - kRounder + base));
  }

  // grad + slope sign(B) d|x|/dx of a finite slope
  template <bool mirrored>
  MBQ_HD float gradient(float grad, float x, float u, float slope) const {
    const float sign = fminf(fmaxf(residual(u, 0.0f), -1.0f), 1.0f);
    return fmaf(sign, mirrored && x < 0.0f ? -slope : slope, grad);
  }
};

}  // namespace mbq
