// The arithmetic of rows of logits, once, for host and device. Twins: mbq_kernels/reference/softmax_math.py and
// mbq_kernels/triton/softmax_math.py. The target is kept apart from the other classes, so that nothing cancels where
// the softmax is sure of it: 1 - p_t is always the sum of the other probabilities.
#pragma once

#include <cstring>

#include "quant_math.h"

namespace mbq {

// e^x for x <= 88, within 2 ulp; 0 below -87.3, where float32 has no normal number; NaN stays. x = n log 2 + r,
// |r| <= log(2) / 2: a polynomial of r (Moshier's Cephes, expf) and n as an exponent. A GPU has an instruction for it,
// around which CUDA's expf is as exact.
MBQ_HD float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  const float shifted = x * 1.44269504088896341f + 12582912.0f, n = shifted - 12582912.0f;  // n is in the low bits
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + (127u << 23);
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  const float value = ((p * r) * r + r + 1.0f) * power;
  return x < -87.3f ? 0.0f : value;
#endif
}
MBQ_HD double exponential(double x) { return std::exp(x); }

// Of the classes but the target: their maximum, sum e^(x - max), sum e^(2 (x - max)).
template <class T>
struct RowSums {
  T max = -static_cast<T>(INFINITY), sum = 0, squares = 0;

  // What x - max is taken from: a maximum of -inf has no distances.
  MBQ_HD T base() const { return max == -static_cast<T>(INFINITY) ? T(0) : max; }

  // The same sums under a maximum of at least `other`.
  MBQ_HD void raise(T other) {
    if (!(other > max)) return;
    const T ratio = exponential(max - other);  // 0 for a first maximum
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
template <class T>
MBQ_HD RowResult<T> row_result(RowSums<T> others, T logit) {
  const T distance = logit - others.max, norm = std::sqrt(others.squares + others.sum * others.sum);
  if (distance > 0) {  // the target has the highest logit
    const T small = std::isinf(logit) ? static_cast<T>(NAN) : exponential(-distance);
    const T rest = others.sum * small, loss = std::log1p(rest);
    return {loss, norm * small / (1 + rest), logit, loss};
  }
  const T whole = others.sum + exponential(distance), log_sum = std::log(whole);
  return {log_sum - distance, norm / whole, others.max, log_sum};
}

// d loss / d x of a class that is not the target, p - uniform; uniform = smoothing / classes
template <class T>
MBQ_HD T class_gap(T x, T top, T log_sum, T uniform) {
  return exponential((x - top) - log_sum) - uniform;
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
