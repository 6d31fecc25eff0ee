// Codes as bytes, straight from the float that rounding leaves: no conversion to an integer.
#pragma once

#include <cstring>

#include "quant_math.h"

namespace mbq {

// The integer below 2^22 that was added to kRounder, if Byte has it
template <class Byte>
MBQ_HD Byte low_byte(float rounded) {
  uint32_t bits;
  memcpy(&bits, &rounded, sizeof(bits));
  return static_cast<Byte>(bits);
}

}  // namespace mbq
