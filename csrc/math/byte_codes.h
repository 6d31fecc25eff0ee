// Codes as bytes, straight from the float that rounding leaves: no conversion to an integer.
#pragma once

#include <cstring>

#include "quant_math.h"

namespace mbq {

// Added to a number below 2^22 it rounds that to an integer, half to even, whose lowest byte is the sum's.
constexpr float kRounder = 12582912.0f;

// The integer that was added to kRounder, if Byte has it
template <class Byte>
MBQ_HD Byte low_byte(float rounded) {
  uint32_t bits;
  memcpy(&bits, &rounded, sizeof(bits));
  return static_cast<Byte>(bits);
}

}  // namespace mbq
