// The arithmetic of rows of logits, once, for host and device. Twins: mbq_kernels/reference/softmax_math.py and
// mbq_kernels/triton/softmax_math.py. The target is kept apart from the other classes, so that nothing cancels where
// the softmax is sure of it: 1 - p_t is always the sum of the other probabilities.
#pragma once

#include <cstring>

#include "quant_math.h"

namespace mbq {

// a b + c, rounded once. Where the target has no instruction for it (`machine` false), in double: the product is exact
// there, and a sum rounded to odd is as good as the exact one for the rounding to float.
template <bool machine>
MBQ_HD float fused(float a, float b, float c) {
  if constexpr (machine) return std::fma(a, b, c);
  const double product = static_cast<double>(a) * b, sum = product + c, added = sum - product;
  const double error = (product - (sum - added)) + (c - added);
  int64_t bits, error_bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  std::memcpy(&error_bits, &error, sizeof(error_bits));
  const int64_t toward_error = 1 | ((error_bits ^ bits) >> 63);
  bits += (error != 0.0) & ~bits & 1 ? toward_error : 0;
  double odd;
  std::memcpy(&odd, &bits, sizeof(odd));
  return static_cast<float>(odd);
}
template <bool machine>
MBQ_HD double fused(double a, double b, double c) {
  return std::fma(a, b, c);
}

// e^x for x <= 88, within 1 ulp; 0 below -87.3, where float32 has no normal number; NaN stays. x = n log 2 + r,
// |r| <= log(2) / 2: the polynomial of r of degree 6 with the least relative error, 3e-9, and n added to its exponent.
// A GPU has an instruction for it, around which CUDA's expf is as exact.
template <bool machine = true>
MBQ_HD float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  const float shifted = fused<machine>(x, 1.44269504088896341f, 12582912.0f);
  const float n = shifted - 12582912.0f;  // n is in the low bits of `shifted`
  const float r = fused<machine>(n, 2.12194440e-4f, fused<machine>(n, -0.693359375f, x));
  float p = fused<machine>(r, 1.38145775794e-3f, 8.36872705088e-3f);
  p = fused<machine>(p, r, 4.16683890317e-2f);
  p = fused<machine>(p, r, 1.66665205479e-1f);
  p = fused<machine>(p, r, 4.99999934422e-1f);
  p = fused<machine>(fused<machine>(p, r, 1.0f), r, 1.0f);
  uint32_t exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  std::memcpy(&bits, &p, sizeof(bits));
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof(p));
  return x < -87.3f ? 0.0f : p;
#endif
}
template <bool machine = true>
MBQ_HD double exponential(double x) {
  return std::exp(x);
}

// Of the classes but the target: their maximum, sum e^(x - max), sum e^(2 (x - max)).
template <class T>
struct RowSums {
  T max = -static_cast<T>(INFINITY), sum = 0, squares = 0;

  // What x - max is taken from: a maximum of -inf has no distances.
  MBQ_HD T base() const { return max == -static_cast<T>(INFINITY) ? T(0) : max; }

  // The same sums under a maximum of at least `other`.
  MBQ_HD void raise(T other) {
    if (!(other > max)) return;
    const T ratio = max == -static_cast<T>(INFINITY) ? T(0) : exponential(max - other);
    sum *= ratio;
    squares *= ratio * ratio;
    max = other;
  }

  MBQ_HD void merge(RowSums other) {
    raise(other.max);
    other.raise(max);
    sum += other.sum;
    squares += other.squares;
  }
};

template <class T>
struct RowResult {
  T loss, el2n, top, log_sum;
};

// top = the row's maximum, log_sum = log(sum over all classes of e^(x - top)); loss = log_sum + top - logit;
// el2n = sqrt(sum_{j != t} p_j^2 + (sum_{j != t} p_j)^2). A logit of +inf, the target's too, gives NaN.
template <bool machine = true, class T>
MBQ_HD RowResult<T> row_result(RowSums<T> others, T logit) {
  const T distance = logit - others.max, norm = std::sqrt(others.squares + others.sum * others.sum);
  if (distance > 0) {  // the target has the highest logit
    const T small = std::isinf(logit) ? static_cast<T>(NAN) : exponential<machine>(-distance);
    const T rest = others.sum * small, loss = std::log1p(rest);
    return {loss, norm * small / (1 + rest), logit, loss};
  }
  const T whole = others.sum + exponential<machine>(distance), log_sum = std::log(whole);
  return {log_sum - distance, norm / whole, others.max, log_sum};
}

// d loss / d x of a class that is not the target, p - uniform; uniform = smoothing / classes
template <bool machine = true, class T>
MBQ_HD T class_gap(T x, T top, T log_sum, T uniform) {
  return exponential<machine>((x - top) - log_sum) - uniform;
}

// d loss / d x of the target: (p - 1) + (smoothing - uniform)
template <class T>
MBQ_HD T target_gap(T x, T top, T log_sum, T smoothing, T uniform) {
  return std::expm1((x - top) - log_sum) + (smoothing - uniform);
}

// loss of the smoothed target, from that of the plain one and the mean of all logits
template <class T>
MBQ_HD T smoothed_loss(RowResult<T> row, T mean, T smoothing) {
  return (1 - smoothing) * row.loss + smoothing * (row.log_sum + (row.top - mean));
}

}  // namespace mbq
