// Weight bias correction: moments of channels, and what maps one set of moments to another, for host and device. Twin:
// mbq_kernels/reference/_correction.py.
#pragma once

#include "quant_math.h"

namespace mbq {

constexpr double kDeviationEps = 1e-8;  // beside a deviation that is divided by
constexpr double kConstant = 1e-6;      // a deviation of up to this share of the mean is rounding: a constant channel

// Of one channel; the deviation is the unbiased one, 0 for a single element.
struct Moments {
  double mean, deviation;
  MBQ_HD bool constant() const { return deviation <= kConstant * std::fabs(mean); }
};

// From the sums of x - pivot and of its square over `count` elements.
MBQ_HD Moments moments_of(double pivot, double sum, double squares, int64_t count) {
  if (count < 2) return {pivot + sum, 0.0};
  const double n = static_cast<double>(count), variance = (squares - sum * sum / n) / (n - 1);
  return {pivot + sum / n, variance < 0 ? 0.0 : std::sqrt(variance)};
}

template <class T>
struct Folded {
  T factor, scale, offset;
};

// code * scale' + offset' = factor * (x_hat - mean(x_hat)) + mean(reference), factor = sd(reference) / sd(x_hat). Where
// all codes are one value the factor is 0, scale' stays scale, which a store takes, and offset' does it all.
template <class T>
MBQ_HD Folded<T> fold(Moments codes, Moments reference, T scale) {
  const double step = scale;
  const double factor = codes.constant() ? 0.0 : reference.deviation / (codes.deviation * step + kDeviationEps);
  const T new_scale = codes.constant() ? scale : static_cast<T>(factor * step);
  // of the rounded scale': its rounding moves no mean
  return {static_cast<T>(factor), new_scale, static_cast<T>(reference.mean - new_scale * codes.mean)};
}

// Sums of codes and their squares; whole numbers, which 1024 elements sum exactly in float, 32 at a time.
template <class T>
struct CodeSums {
  using Sum = T;
  Bounds<T> range;
  MBQ_HD Sum first(T x, T scale, T offset) const { return encode(scaled(x, scale, offset), range); }
};

// Sums of x - pivot and its square.
template <class T>
struct DeviationSums {
  using Sum = double;
  MBQ_HD Sum first(T x, T pivot, T) const { return static_cast<double>(x) - static_cast<double>(pivot); }
};

// The two halves of a corrected quantizer: the code, and its value under the folded scale and offset.
template <class T>
struct Encode {
  Bounds<T> range;
  MBQ_HD T value(T x, T scale, T offset) const { return encode(scaled(x, scale, offset), range); }
};

template <class T>
struct Decode {
  MBQ_HD T value(T code, T scale, T offset) const { return decode(code, scale, offset); }
};

template <class T>
struct Centred {
  MBQ_HD T value(T x, T centre, T) const { return x - centre; }
};

// A gradient times the factor of its channel.
template <class T>
struct Scaled {
  MBQ_HD T value(T grad, T factor, T) const { return grad * factor; }
};

}  // namespace mbq
