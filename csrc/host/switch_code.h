// From a code of many bits to one of fewer, in integers (Huang et al., 2025, arXiv 2502.01199, eq. 2-3).
#pragma once

#include <cstdint>

#include "../quant_math.h"

namespace mbq {

enum class Rounding { half_even, half_up };

// round(code / 2^shift), not clamped: the highest codes give one more than the highest code of fewer bits.
// half_even: (code + 2^(shift-1) - 1 + odd) >> shift, odd = the last bit that stays;
// half_up: (code + 2^(shift-1)) >> shift.
template <class T>
MBQ_HD T switch_code(T code, int shift, Rounding rounding) {
  if (shift == 0) return code;
  const T half = static_cast<T>(1 << (shift - 1)), odd = static_cast<T>((code >> shift) & 1);
  const T bias = rounding == Rounding::half_even ? static_cast<T>(half - 1 + odd) : half;
  return static_cast<T>(static_cast<T>(code + bias) >> shift);
}

}  // namespace mbq
