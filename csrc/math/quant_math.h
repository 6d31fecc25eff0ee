// The arithmetic of mbq-kernels, once, for host and device. Twins: mbq_kernels/reference/quant_math.py and
// mbq_kernels/triton/quant_math.py. Every operation rounds by itself: build with contraction off.
#pragma once

#include <cstdint>

#include "division.h"

namespace mbq {

template <class T>
struct Bounds {
  T lo, hi;
  // Of what bounds() gives, only signed 1 bit has lo = -hi; its codes are the signs.
  MBQ_HD bool binary() const { return lo == -hi; }
};

// Bounds that are known not to be those of signs, so that no loop asks.
template <class T>
struct LevelBounds : Bounds<T> {
  MBQ_HD static constexpr bool binary() { return false; }
};

// Lowest and highest code: [-2^(b-1), 2^(b-1)-1] signed, [0, 2^b-1] unsigned, {-1, +1} signed at 1 bit.
template <class T>
MBQ_HD Bounds<T> bounds(int64_t bits, bool is_signed) {
  const T steps = static_cast<T>(int64_t{1} << (is_signed ? bits - 1 : bits));
  if (!is_signed) return {T(0), steps - 1};
  return bits == 1 ? Bounds<T>{T(-1), T(1)} : Bounds<T>{-steps, steps - 1};
}

// In the place of a shift, where there is none: x - it and x + it are x and cost nothing. (Codes are never -0, which +
// 0 would change.)
struct NoShift {
  template <class T>
  MBQ_HD operator T() const {
    return T(0);
  }
};
template <class T>
MBQ_HD T operator-(T x, NoShift) {
  return x;
}
template <class T>
MBQ_HD T operator+(T x, NoShift) {
  return x;
}

// rint, half to even, for |v| < 2^22 (2^51 in double): adding 1.5 * 2^23 leaves no room for a fraction.
constexpr float kRounder = 12582912.0f;
MBQ_HD float round_even(float v) { return (v + kRounder) - kRounder; }
MBQ_HD double round_even(double v) { return (v + 6755399441055744.0) - 6755399441055744.0; }

// NaN stays NaN: both comparisons are false for it. (On the GPU an instruction each does the same.)
template <class T>
MBQ_HD T clamp(T v, T lo, T hi) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float>) {
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(v) : "f"(lo));
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(v) : "f"(hi));
    return v;
  }
#endif
  const T raised = v < lo ? lo : v;
  return raised > hi ? hi : raised;
}

// max(scale * unit, floor), the scale that is computed with; NaN stays NaN
template <class T>
MBQ_HD T effective_scale(T scale, T unit, T floor) {
  const T size = scale * unit;
  return size < floor ? floor : size;
}

// v = (x - offset) / scale
template <class T, class Scale, class Offset>
MBQ_HD T scaled(T x, Scale scale, Offset offset) {
  return divide(x - offset, scale);
}

// code = clamp(rint(v), lo, hi), clamped first so that the rounding is exact; at 1 bit the sign of `side`, +-0 -> +1,
// which has that of v
template <class T, class Range>
MBQ_HD T encode(T v, T side, Range b) {
  const T sign = side < T(0) ? b.lo : (side >= T(0) ? b.hi : side), level = round_even(clamp(v, b.lo, b.hi));
  return b.binary() ? sign : level;
}
template <class T, class Range>
MBQ_HD T encode(T v, Range b) {
  return encode(v, v, b);
}

// x_hat = code * scale + offset
template <class T, class Offset>
MBQ_HD T decode(T code, T scale, Offset offset) {
  return code * scale + offset;
}

// Terms of the gradients of x, of the scale, grad * slope, and of the offset or zero point; the last two are summed
// over a channel.
template <class T>
struct Terms {
  T x, grad, slope, shift;
  MBQ_HD T scale() const { return grad * slope; }
  MBQ_HD T scale_onto(T sum) const { return std::fma(grad, slope, sum); }  // with one rounding, where that is cheaper
};

// (x, scale, shift) inside = lo <= v <= hi: (grad, grad (code - v), 0); below: (0, grad lo, grad); above:
// (0, grad hi, grad); NaN: (0, NaN, 0)
template <class T>
MBQ_HD Terms<T> gradient_terms(T grad, T v, T code, Bounds<T> b) {
  const T bound = clamp(v, b.lo, b.hi), rounding = code - v;
  const bool inside = bound == v, outside = (bound < v) | (bound > v);  // NaN is neither
  return {inside ? grad : T(0), grad, inside ? rounding : bound, outside ? grad : T(0)};
}

// 1 / sqrt(count hi), LSQ's factor; count = elements that share the scale
inline double default_grad_factor(int64_t count, double hi) {
  return 1.0 / std::sqrt(static_cast<double>(count > 0 ? count : 1) * hi);
}

// From codes to codes that are ratio = 2^D times coarser; added to a position, nudge decides its ties.
template <class T>
struct SecondRounding {
  T ratio, inv_ratio, nudge;
};

// Ties stay, for half to even, or go up. Positions are multiples of 2^-6 (D <= 6): nothing but ties passes a tie.
template <class T>
MBQ_HD SecondRounding<T> second_rounding(T ratio, bool half_up) {
  return {ratio, 1 / ratio, half_up ? T(1) / 256 : T(0)};
}

// clamp(round(code / ratio), lo, hi) of a code in [lo ratio, hi ratio], which the clamp leaves as it is
template <class T>
MBQ_HD T second_encode(T code, SecondRounding<T> again) {
  return round_even(code * again.inv_ratio + again.nudge);
}

// x_hat = (code * 2^D) * scale: one rounding, and no overflow that x_hat has not
template <class T>
MBQ_HD T double_decode(T code, SecondRounding<T> again, T scale) {
  return code * again.ratio * scale;
}

// From a higher to a lower bit-width (Double Rounding): code_l = clamp(round(code / 2^shift), lo, hi).
struct Switch {
  int shift, bias, odd, top;
};

// bias + (quotient & odd) is what the rounding adds before the floor: half up 2^(D-1), half to even that less one for
// even quotients. Codes above `top` would round to hi + 1, which is even; cut off at `top` they become hi, and the sum
// stays in the range of from_bits.
MBQ_HD Switch switching(int64_t from_bits, int64_t to_bits, bool half_even) {
  const int shift = static_cast<int>(from_bits - to_bits), odd = shift > 0 && half_even, half = (1 << shift) / 2;
  return {shift, half - odd, odd, bounds<int>(from_bits, true).hi - half};
}

// code_l = (kept + bias + (floor(kept / 2^D) & odd)) >> D, kept = min(code, top), of a code of the range of from_bits.
// Every value fits Int where codes do, and the casts say so to compilers: bytes stay bytes. (The twins compute at twice
// the width and clamp the result.)
template <class Int>
MBQ_HD Int switch_code(Int code, Switch s) {
  const Int bias = static_cast<Int>(s.bias), odd = static_cast<Int>(s.odd), top = static_cast<Int>(s.top);
  const Int kept = code < top ? code : top;
  const Int quotient = static_cast<Int>(static_cast<std::make_unsigned_t<Int>>(kept) >> s.shift);
  const Int added = static_cast<Int>(bias + static_cast<Int>(quotient & odd));
  return static_cast<Int>(static_cast<Int>(kept + added) >> s.shift);
}

// How x becomes u in [0, 1], and codes become values: the offset form of a weight in [-limit, limit] is
// {1/2, 1/2, 0, 1}, its sign-magnitude form {1, 0, 1, -1}; of u itself, with limit 1, they are {1, 0, 0, 1} and
// {1, 0, 1, 1}.
template <class T>
struct UnitForm {
  T half, centre, less, mirror;  // less: steps fewer than 2^bits; mirror: what negative x are multiplied by
};

template <class T>
MBQ_HD UnitForm<T> unit_form(bool is_weight, bool sign_magnitude) {
  const T half = is_weight && !sign_magnitude ? T(0.5) : T(1);
  return {half, T(1) - half, sign_magnitude ? T(1) : T(0), is_weight && sign_magnitude ? T(-1) : T(1)};
}

// u = x / limit * half + centre, of |x| where mirror is -1; for x = 0 it is centre at limit 0 too
template <class T>
MBQ_HD T unit_position(T x, T limit, UnitForm<T> form) {
  const T size = x < T(0) ? x * form.mirror : x;
  const T u = divide(size, limit) * form.half + form.centre;
  return x == T(0) ? form.centre : u;
}

// u within [0, 1], NaN to 0. A loop whose compiler does not know the bounds takes a maximum and a minimum; constants it
// would carry into what is computed from u, under masks.
template <class T>
MBQ_HD T within_unit(T u, Bounds<T> unit = {T(0), T(1)}) {
  const T raised = u > unit.lo ? u : unit.lo;
  return raised < unit.hi ? raised : unit.hi;
}

// c = min(rint(steps u), steps - 1), half to even, of u in [0, 1]; steps = 2^bits
template <class T>
MBQ_HD T round_clamp_code(T u, T steps) {
  const T level = round_even(u * steps), top = steps - 1;
  return level < top ? level : top;
}

// What a signed code is multiplied by, limit / (steps half - less): of a weight limit * 2^(1 - bits), or
// limit / (2^bits - 1) in the sign-magnitude form
template <class T>
MBQ_HD T round_clamp_scale(T limit, T steps, UnitForm<T> form) {
  return divide(limit, steps * form.half - form.less);
}

// c - steps centre, or the sign of x times c; 0 - c has no -0, which no integer stands for
template <class T>
MBQ_HD T round_clamp_signed(T code, T x, T steps, UnitForm<T> form) {
  const T level = code - steps * form.centre;
  return (form.mirror < T(0)) & (x < T(0)) ? T(0) - level : level;
}

// B = c_n(u) - 2^k c_(n-k)(u), steps = 2^n, coarse = 2^(n-k), ratio = 2^k; every operation is exact
template <class T>
MBQ_HD T lsb_residual(T u, T steps, T coarse, T ratio) {
  return round_clamp_code(u, steps) - ratio * round_clamp_code(u, coarse);
}

// The penalty's gradient where B > 0, grad_penalty * factor / limit; factor = 2^bits * half, or half alone
template <class T>
MBQ_HD T lsb_slope(T grad_penalty, T limit, T factor) {
  return divide(grad_penalty * factor, limit);
}

// grad + slope sign(B) d|x|/dx: the task's gradient straight through, the penalty's beside it; d|x|/dx is mirror for
// negative x
template <class T>
MBQ_HD T lsb_gradient(T grad, T x, T residual, T slope, UnitForm<T> form) {
  const T rise = x < T(0) ? slope * form.mirror : slope;
  return grad + (residual > T(0) ? rise : (residual < T(0) ? -rise : T(0)));
}

// What the loops of csrc/cpu and csrc/cuda run: one bit-width of one quantizer, with a scale and a shift per channel.
// Scale is T, or on CUDA InvertedScale or AnyScale; Shift is T, or NoShift. integer_shift: the shift stands for an
// integer, which NaN cannot. levels(): the same quantizer, of which it is known that it is not binary.
template <class T, class Range>
struct FakeQuantizeWithin {
  static constexpr bool integer_shift = false;
  Range range;
  template <class Scale, class Shift>
  MBQ_HD T value(T x, Scale scale, Shift offset) const {
    return decode<T>(code(scaled(x, scale, offset), x - offset, scale), scale, offset);
  }
  template <class Scale, class Shift>
  MBQ_HD Terms<T> terms(T grad, T x, Scale scale, Shift offset) const {
    const T v = scaled(x, scale, offset);
    return gradient_terms<T>(grad, v, code(v, x - offset, scale), range);
  }
  template <class Scale>
  MBQ_HD T code(T v, T x, Scale scale) const {
    return encode(v, quotient_sign(v, x, scale), range);
  }
  MBQ_HD FakeQuantizeWithin<T, LevelBounds<T>> levels() const { return {{range}}; }
};
template <class T>
using FakeQuantize = FakeQuantizeWithin<T, Bounds<T>>;

// Double rounding to the codes of `range`. Codes of high_bits above hi ratio all become hi, so that the first clamp is
// to `reach` = [lo ratio, hi ratio] and there is no second one. There is no shift.
template <class T>
struct DoubleRound {
  static constexpr bool integer_shift = false;
  Bounds<T> range, reach;
  SecondRounding<T> again;
  MBQ_HD T code(T v) const { return second_encode(round_even(clamp(v, reach.lo, reach.hi)), again); }
  template <class Scale, class Shift>
  MBQ_HD T value(T x, Scale scale, Shift) const {
    return double_decode<T>(code(scaled(x, scale, NoShift())), again, scale);
  }
  template <class Scale, class Shift>
  MBQ_HD Terms<T> terms(T grad, T x, Scale scale, Shift) const {
    const T v = scaled(x, scale, NoShift());
    return gradient_terms(grad, v * again.inv_ratio, code(v), range);
  }
  MBQ_HD DoubleRound levels() const { return *this; }
};

// What a loop over least significant bits writes for every element, beside what it counts.
enum class LsbOut { nothing, value, residual };

// Round-clamp at one bit-width and the k bits it may lose: what the loops over least significant bits run. factor is
// lsb_slope's, scale round_clamp_scale's.
template <class T>
struct RoundClamp {
  UnitForm<T> form;
  T steps, coarse, ratio, factor;
  Bounds<T> unit = {T(0), T(1)};
  MBQ_HD bool mirrored() const { return form.mirror < T(0); }
  // For loops of which the compiler makes two, so that the offset form spends nothing on signs.
  template <bool is_mirrored>
  MBQ_HD RoundClamp known() const {
    RoundClamp same = *this;
    same.form.mirror = is_mirrored ? T(-1) : T(1);
    return same;
  }
  MBQ_HD T position(T x, T limit) const { return unit_position(x, limit, form); }
  MBQ_HD T scale(T limit) const { return round_clamp_scale(limit, steps, form); }
  MBQ_HD T value(T u, T x, T scale) const {
    return round_clamp_signed(round_clamp_code(u, steps), x, steps, form) * scale;
  }
  MBQ_HD T residual(T u) const { return lsb_residual(u, steps, coarse, ratio); }
  MBQ_HD T gradient(T grad, T x, T limit, T slope) const {
    return lsb_gradient(grad, x, residual(within_unit(position(x, limit), unit)), slope, form);
  }
};

// Codes instead of x_hat; NaN, which no code stands for, becomes the lowest.
template <class T, class Range>
struct QuantizeCodesWithin {
  static constexpr bool integer_shift = false;
  Range range;
  template <class Scale, class Shift>
  MBQ_HD T value(T x, Scale scale, Shift offset) const {
    const T v = scaled(x, scale, offset), code = encode(v, quotient_sign(v, x - offset, scale), range);
    return code == code ? code : range.lo;
  }
  // kRounder + value in float, whose lowest byte is the code
  template <class Scale, class Shift>
  MBQ_HD T rounded(T x, Scale scale, Shift offset) const {
    const T v = scaled(x, scale, offset);
    const T code = range.binary() ? encode(v, quotient_sign(v, x - offset, scale), range) : v;
    return std::fmin(std::fmax(code, range.lo), range.hi) + kRounder;  // NaN loses to lo
  }
  MBQ_HD QuantizeCodesWithin<T, LevelBounds<T>> levels() const { return {{range}}; }
};
template <class T>
using QuantizeCodes = QuantizeCodesWithin<T, Bounds<T>>;

// x_hat = (code_l * 2^D) * scale, as double_decode has it, from a code of `from`; on CUDA one outside is cut off.
template <class T>
struct DequantizeCodes {
  Bounds<int> from;
  Switch to;
  T step;  // 2^D
  MBQ_HD T value_of(int code, T scale) const {
    return static_cast<T>(switch_code(clamp(code, from.lo, from.hi), to)) * step * scale;
  }
  MBQ_HD T value(T code, T scale, T) const { return value_of(static_cast<int>(code), scale); }
};

}  // namespace mbq
