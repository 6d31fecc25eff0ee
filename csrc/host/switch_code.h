// From a code of many bits to one of fewer, in integers (Huang et al., 2025, arXiv 2502.01199, eq. 2-3).
#pragma once

#include "../quant_math.h"

namespace mbq {

enum class Rounding { half_even, half_up };

// round(code / 2^shift), not clamped: the highest codes give one more than the highest code of fewer bits.
// half_even: (code + 2^(shift-1) - 1 + odd) >> shift, odd = the last bit that stays;
// half_up: (code + 2^(shift-1)) >> shift.
MBQ_HD int switch_code(int code, int shift, Rounding rounding) {
  if (shift == 0) return code;
  const int half = 1 << (shift - 1), odd = (code >> shift) & 1;
  return (code + (rounding == Rounding::half_even ? half - 1 + odd : half)) >> shift;
}

}  // namespace mbq
