// One chunk of codes from a higher to a lower bit-width.
#pragma once

#include "block.h"

namespace mbq {

// The shift is a constant of the loop: the compiler then makes vectors of 16-bit codes, not of 32-bit ones.
template <int shift>
struct SwitchCodes {
  MBQ_HD void operator()(const int8_t* __restrict from, int8_t* __restrict to, int64_t n, Switch s) const {
    s.shift = shift;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(switch_code<int16_t>(from[i], s));
  }
};

inline void switch_codes(const int8_t* from, uint8_t* to_bytes, int64_t n, Switch s) {
  int8_t* to = reinterpret_cast<int8_t*>(to_bytes);
  switch (s.shift) {
    case 0:
      return run<SwitchCodes<0>>(from, to, n, s);
    case 1:
      return run<SwitchCodes<1>>(from, to, n, s);
    case 2:
      return run<SwitchCodes<2>>(from, to, n, s);
    case 3:
      return run<SwitchCodes<3>>(from, to, n, s);
    case 4:
      return run<SwitchCodes<4>>(from, to, n, s);
    case 5:
      return run<SwitchCodes<5>>(from, to, n, s);
    default:
      return run<SwitchCodes<6>>(from, to, n, s);
  }
}

}  // namespace mbq
