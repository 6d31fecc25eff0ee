// The arithmetic of fake_quantize_affine, for host and device. Twins: mbq_kernels/reference/affine_math.py and
// mbq_kernels/triton/affine_math.py. affine_*: torch.ao's; general_*: that of other people's code.
#pragma once

#include "quant_math.h"

namespace mbq {

// zp = clamp(rint(zero_point), quant_min, quant_max)
template <class T>
MBQ_HD T affine_zero_point(T zero_point, Bounds<T> range) {
  return round_even(clamp(zero_point, range.lo, range.hi));
}

// Codes less zp: level = rint(x * inv_scale), cut off one step outside the range; kept = level within the range.
template <class T>
struct AffineCode {
  T level, kept;
};

template <class T>
MBQ_HD AffineCode<T> affine_encode(T x, T inv_scale, T zero_point, Bounds<T> range) {
  const T lo = range.lo - zero_point, hi = range.hi - zero_point;
  const T level = round_even(clamp(x * inv_scale, lo - 1, hi + 1));
  return {level, clamp(level, lo, hi)};
}

// x_hat = (code - zp) * scale
template <class T>
MBQ_HD T affine_decode(T kept, T scale) {
  return kept * scale;
}

// inside: (grad, grad (x_hat - x) / scale, 0); clipped to code c: (0, grad (c - zp), -scale grad); NaN: (0, NaN, 0)
template <class T, class Scale>
MBQ_HD Terms<T> affine_gradient_terms(T grad, T x, Scale scale, T zero_point, Bounds<T> range) {
  const T inv_scale = inverse(scale);
  const AffineCode<T> code = affine_encode(x, inv_scale, zero_point, range);
  const T rounding = (affine_decode<T>(code.kept, scale) - x) * inv_scale;
  const bool inside = code.kept == code.level, clipped = (code.kept < code.level) | (code.kept > code.level);
  return {inside ? grad : T(0), grad, inside ? rounding : code.kept, clipped ? -(scale * grad) : T(0)};
}

// A number as storage type T has it.
template <class T, class W>
MBQ_HD W as_stored(W value) {
  return static_cast<W>(static_cast<T>(value));
}

template <class W>
struct AffineRange {
  W scale, zero_point;
};

// Of a row of T with values from least <= 0 to greatest >= 0, every step rounded to T. symmetric: scale =
// max(-least, greatest) / ((hi - lo) / 2), zp = int((hi + lo + 1) / 2); else (greatest - least) / (hi - lo),
// clamp(lo - rint(least / scale), lo, hi). scale is at least eps; NaN, which both have or neither, stays.
template <class T, class W>
MBQ_HD AffineRange<W> dynamic_range(W least, W greatest, Bounds<W> range, bool symmetric, W eps) {
  const W steps = range.hi - range.lo, floor = as_stored<T>(eps);
  if (symmetric) {
    const W size = as_stored<T>((-least > greatest ? -least : greatest) / (steps / 2));
    return {size < floor ? floor : size, std::trunc((range.hi + range.lo + 1) / 2)};
  }
  const W size = as_stored<T>(as_stored<T>(greatest - least) / steps), scale = size < floor ? floor : size;
  const W zero_point = as_stored<T>(range.lo - round_even(as_stored<T>(least / scale)));
  return {scale, clamp(zero_point, range.lo, range.hi)};
}

// inside: grad * up * down, grad itself where they are 1, (grad * scale) * (1 / scale) where they are scale and its
// inverse; else 0, NaN too
template <class T>
MBQ_HD T dynamic_gradient(T grad, T x, T inv_scale, T zero_point, Bounds<T> range, T up, T down) {
  const AffineCode<T> code = affine_encode(x, inv_scale, zero_point, range);
  return code.kept == code.level ? grad * up * down : T(0);
}

// How other people's code differs from the above. divide: x / scale. before, after: the zero point as it is, added
// before or after the rounding. by_position: clipped is what lies outside before the rounding. through: nothing is
// clipped for gradients. product: grad x as autograd has it, multiplied by the scale and divided again. Each is 0 or 1,
// a T: compilers make vectors of what is selected by numbers of its own width, but not by truth values from outside.
template <class T>
struct AffineForm {
  T divide, before, after, by_position, through, product;
};

// What q = x / scale and products by the scale are computed with: divide(x * factor, divisor), one of which is 1, so
// that loops ask nothing. A T, because an inverted scale gives quotients that are exact up to 1024 alone.
template <class T>
struct GeneralScale {
  T factor, divisor;
};

template <class T, class Scale>
MBQ_HD GeneralScale<T> general_scale(Scale scale, AffineForm<T> form) {
  return {form.divide > T(0) ? T(1) : inverse(scale), form.divide > T(0) ? static_cast<T>(scale) : T(1)};
}

// quotient, unrounded; kept: the code in range, less the zero point; seen: what is inside the range or outside, for
// gradients.
template <class T>
struct GeneralCode {
  T quotient, kept, seen;
};

// code = clamp(rint(x / scale + zp), lo, hi) or clamp(rint(x / scale) + zp, lo, hi)
template <class T, class Scale>
MBQ_HD GeneralCode<T> general_encode(T x, Scale scale, T zero_point, Bounds<T> range, AffineForm<T> form) {
  const GeneralScale<T> by = general_scale<T>(scale, form);
  const T zp = form.before + form.after > T(0) ? zero_point : affine_zero_point(zero_point, range);
  const T within = form.before > T(0) ? zp : T(0), beside = form.before > T(0) ? T(0) : zp;
  const T quotient = divide(x * by.factor, by.divisor), position = quotient + within;
  const T level = round_even(clamp(position, range.lo - beside - 1, range.hi - beside + 1)) + beside;
  return {quotient, clamp(level, range.lo, range.hi) - zp, form.by_position > T(0) ? position + beside : level};
}

// x_hat = (code - zp) * scale
template <class T>
MBQ_HD T general_decode(GeneralCode<T> code, T scale) {
  return code.kept * scale;
}

// (x, scale, shift) inside: (grad, grad (code - zp - x / scale), 0); else (0, grad (code - zp), -scale grad); NaN:
// (0, NaN, 0)
template <class T, class Scale>
MBQ_HD Terms<T> general_gradient_terms(T grad, T x, Scale scale, T zero_point, Bounds<T> range, AffineForm<T> form) {
  const GeneralCode<T> code = general_encode(x, scale, zero_point, range, form);
  const GeneralScale<T> by = general_scale<T>(scale, form);
  const T size = scale, up = form.product > T(0) ? size : T(1), factor = form.product > T(0) ? by.factor : T(1);
  const T passed = divide(grad * up * factor, form.product > T(0) ? by.divisor : T(1));
  const T bound =
      clamp(code.seen, form.through > T(0) ? T(-INFINITY) : range.lo, form.through > T(0) ? T(INFINITY) : range.hi);
  const bool inside = bound == code.seen, outside = (bound < code.seen) | (bound > code.seen);  // NaN is neither
  return {inside ? passed : T(0), grad, inside ? code.kept - code.quotient : code.kept,
          outside ? -(size * grad) : T(0)};
}

template <class T>
struct FakeQuantizeAffine {
  static constexpr bool integer_shift = true;
  Bounds<T> range;
  template <class Scale>
  MBQ_HD T value(T x, Scale scale, T zero_point) const {
    const T zp = affine_zero_point(zero_point, range);
    return affine_decode<T>(affine_encode(x, inverse(scale), zp, range).kept, scale);
  }
  template <class Scale>
  MBQ_HD Terms<T> terms(T grad, T x, Scale scale, T zero_point) const {
    return affine_gradient_terms(grad, x, scale, affine_zero_point(zero_point, range), range);
  }
  MBQ_HD FakeQuantizeAffine levels() const { return *this; }
};

template <class T>
struct GeneralAffine {
  static constexpr bool integer_shift = true;
  Bounds<T> range;
  AffineForm<T> form;
  template <class Scale>
  MBQ_HD T value(T x, Scale scale, T zero_point) const {
    return general_decode<T>(general_encode(x, scale, zero_point, range, form), scale);
  }
  template <class Scale>
  MBQ_HD Terms<T> terms(T grad, T x, Scale scale, T zero_point) const {
    return general_gradient_terms(grad, x, scale, zero_point, range, form);
  }
  MBQ_HD GeneralAffine levels() const { return *this; }
};

}  // namespace mbq
