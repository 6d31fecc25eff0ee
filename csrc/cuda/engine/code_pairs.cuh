// Switching of stored codes to a lower bit-width, two in a word.
#pragma once

#include <cstring>

#include "math/quant_math.h"

namespace mbq::cuda {

// switch_code on pairs: of codes + 128, one in each half of a word, to 128 + 2^shift code_l where the bits of `keep`
// are taken of a half. Codes outside `from` are clamped.
struct PairSwitch {
  uint32_t low, high, bias, odd, keep;
  int shift;

  MBQ_HD PairSwitch(Bounds<int> from, Switch s)
      : low(both(128 + from.lo)),
        high(both(128 + (s.top < from.hi ? s.top : from.hi))),
        bias(both(s.bias)),
        odd(both(s.odd)),
        keep(255u >> s.shift << s.shift),
        shift(s.shift) {}

  // A half of a pair that was switched, 2^shift code_l, by way of a float whose lowest bits it is.
  MBQ_HD float code_of(uint32_t pair, bool upper) const {
    const uint32_t bits = ((upper ? pair >> 16 : pair) & keep) | 0x4B000000u;
    float number;
    memcpy(&number, &bits, sizeof(bits));
    return number - (8388608.0f + 128.0f);
  }

  MBQ_HD static uint32_t both(int half) { return 0x00010001u * static_cast<uint32_t>(half); }
};

// Bytes 0 and 2 of a word, or 1 and 3, each in a half of its own.
template <bool odd>
MBQ_HD uint32_t spread_bytes(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(word, 0, odd ? 0x4341 : 0x4240);
#else
  return word >> (odd ? 8 : 0) & 0x00FF00FFu;
#endif
}

MBQ_HD uint32_t greater_halves(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __vmaxu2(a, b);
#else
  const uint32_t upper = (a >> 16 > b >> 16 ? a : b) & 0xFFFF0000u, low_a = a & 0xFFFFu, low_b = b & 0xFFFFu;
  return upper | (low_a > low_b ? low_a : low_b);
#endif
}

MBQ_HD uint32_t lesser_halves(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __vminu2(a, b);
#else
  return ~greater_halves(~a, ~b);
#endif
}

// `count` pairs at once, so that what a call does not need costs a branch and no more
template <int count>
MBQ_HD void switch_pairs(uint32_t (&pairs)[count], const PairSwitch& s) {
  if (s.low != 0) {
#pragma unroll
    for (int i = 0; i < count; ++i) pairs[i] = greater_halves(pairs[i], s.low);
  }
  if (s.high != PairSwitch::both(255)) {
#pragma unroll
    for (int i = 0; i < count; ++i) pairs[i] = lesser_halves(pairs[i], s.high);
  }
  if (s.odd != 0) {
#pragma unroll
    for (int i = 0; i < count; ++i) pairs[i] += pairs[i] >> s.shift & s.odd;
  }
#pragma unroll
  for (int i = 0; i < count; ++i) pairs[i] += s.bias;
}

}  // namespace mbq::cuda
