// Division by a scale, for host and device: as IEEE has it, and without dividing, as CUDA's loops do it.
#pragma once

#include <cmath>
#include <type_traits>

#include "host_device.h"

namespace mbq {

// IEEE division; nvcc's `/` is only as exact as its flags.
MBQ_HD float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
MBQ_HD double divide(double a, double b) { return a / b; }

// x / scale by reciprocal = RN(1 / scale), where 2^-100 < scale < 2^100. One correction makes q the IEEE quotient, but
// where |q| >= 1024, where every code is clamped, and where x or q is below 2^-100: there it may be off in its last
// place, and its code is 0.
MBQ_HD float quotient_by_reciprocal(float x, float scale, float reciprocal) {
  const float q = x * reciprocal, exact = std::fma(std::fma(-q, scale, x), reciprocal, q);
  return std::fabs(q) < 1024.0f ? exact : q;
}

// RN(1 / x)
MBQ_HD float inverse(float x) {
#if defined(__CUDA_ARCH__)
  return __frcp_rn(x);
#else
  return 1.0f / x;
#endif
}
MBQ_HD double inverse(double x) { return 1.0 / x; }

// The same for 2^-126 < x < 2^124: what __frcp_rn does there, without its branch for all others.
MBQ_HD float inverse_within(float x) {
#if defined(__CUDA_ARCH__)
  float near;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(x));
  return std::fma(near, -std::fma(x, near, -1.0f), near);
#else
  return inverse(x);
#endif
}

// A scale by which dividing is multiplying: CUDA's loops take it in the place of a float, where `exact` holds.
struct InvertedScale {
  float scale, reciprocal;
  InvertedScale() = default;
  MBQ_HD explicit InvertedScale(float s) : scale(s), reciprocal(inverse_within(s)) {}
  MBQ_HD operator float() const { return scale; }
  MBQ_HD static bool exact(float scale) { return scale > 0x1p-100f && scale < 0x1p100f; }
};
MBQ_HD float divide(float a, InvertedScale b) { return quotient_by_reciprocal(a, b.scale, b.reciprocal); }
MBQ_HD float inverse(InvertedScale scale) { return scale.reciprocal; }

// The same for every scale, of 0 and infinity too: x / scale = (x factor) / (scale factor). What a factor makes inexact
// or infinite has a quotient that is 0 or is clamped.
struct AnyScale {
  float scale, factor, divisor, reciprocal;
  AnyScale() = default;
  MBQ_HD explicit AnyScale(float s) : scale(s) {
    const float size = std::fabs(s);
    factor = size > 0x1p-100f ? (size < 0x1p100f ? 1.0f : 0x1p-64f) : 0x1p64f;
    divisor = size == INFINITY ? 1.0f : s * factor;
    reciprocal = inverse(s * factor);
  }
  MBQ_HD operator float() const { return scale; }
};
MBQ_HD float divide(float a, AnyScale b) { return quotient_by_reciprocal(a * b.factor, b.divisor, b.reciprocal); }
MBQ_HD float inverse(AnyScale scale) { return inverse(scale.scale); }

// A number of the sign of x / scale, v or nearly so: what is not above 2^-150, half of the least number, rounds to 0.
template <class T, class Scale>
MBQ_HD T quotient_sign(T v, T x, Scale scale) {
  if constexpr (std::is_floating_point_v<Scale>) return v;
  const bool rounds_to_0 = !(std::fabs(x) * 0x1p126f > std::fabs(static_cast<T>(scale)) * 0x1p-24f);
  return rounds_to_0 ? v - v : (v == T(0) ? x * scale : v);
}

}  // namespace mbq
