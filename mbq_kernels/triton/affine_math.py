"""The arithmetic of fake_quantize_affine in Triton, float32. Twins: math/affine_math.h and reference/affine_math.py.

affine_*: torch.ao's; general_*: that of other people's code. Launch with enable_fp_fusion=False.
"""

import triton
import triton.language as tl

from .quant_math import clamp, from_storage, round_even, to_storage


@triton.jit
def affine_zero_point(zero_point, quant_min, quant_max):
    """zp = clamp(rint(zero_point), quant_min, quant_max)"""
    return round_even(clamp(zero_point, quant_min, quant_max))


@triton.jit
def affine_encode(x, inv_scale, zero_point, quant_min, quant_max):
    """Codes less zp, (level, kept): level = rint(x * inv_scale), cut off one step outside; kept = level in the range"""
    lo = quant_min - zero_point
    hi = quant_max - zero_point
    level = round_even(clamp(x * inv_scale, lo - 1.0, hi + 1.0))
    return level, clamp(level, lo, hi)


@triton.jit
def affine_decode(kept, scale):
    """x_hat = (code - zp) * scale"""
    return kept * scale


@triton.jit
def affine_gradient_terms(grad, x, scale, zero_point, quant_min, quant_max):
    """inside: (grad, grad (x_hat - x) / scale, 0); clipped to c: (0, grad (c - zp), -scale grad); NaN: (0, NaN, 0)"""
    inv_scale = tl.div_rn(1.0, scale)
    level, kept = affine_encode(x, inv_scale, zero_point, quant_min, quant_max)
    inside = kept == level
    clipped = (kept < level) | (kept > level)  # NaN is neither
    slope = tl.where(inside, (affine_decode(kept, scale) - x) * inv_scale, kept)
    return tl.where(inside, grad, 0.0), grad * slope, tl.where(clipped, -(scale * grad), 0.0)


@triton.jit
def as_stored(value, dtype):
    """A number as storage type dtype has it"""
    return from_storage(to_storage(value, dtype))


@triton.jit
def dynamic_range(least, greatest, quant_min, quant_max, SYMMETRIC: tl.constexpr, eps, dtype):
    """(scale, zero point) of rows from least <= 0 to greatest >= 0, every step rounded to dtype, eps already"""
    steps = quant_max - quant_min
    if SYMMETRIC:
        size = as_stored(tl.div_rn(tl.where(-least > greatest, -least, greatest), steps / 2), dtype)
        scale = tl.where(size < eps, eps, size)
        middle = (quant_max + quant_min + 1.0) / 2
        zero_point = tl.zeros_like(least) + tl.where(middle < 0.0, tl.ceil(middle), tl.floor(middle))
    else:
        size = as_stored(tl.div_rn(as_stored(greatest - least, dtype), steps), dtype)
        scale = tl.where(size < eps, eps, size)
        zero_point = as_stored(quant_min - round_even(as_stored(tl.div_rn(least, scale), dtype)), dtype)
        zero_point = clamp(zero_point, quant_min, quant_max)
    return scale, zero_point


@triton.jit
def dynamic_gradient(grad, x, scale, zero_point, quant_min, quant_max, PRODUCT: tl.constexpr):
    """inside: grad, or with PRODUCT (grad * scale) * (1 / scale); else 0, NaN too"""
    inv_scale = tl.div_rn(1.0, scale)
    level, kept = affine_encode(x, inv_scale, zero_point, quant_min, quant_max)
    if PRODUCT:
        grad = grad * scale * inv_scale
    return tl.where(kept == level, grad, 0.0)


@triton.jit
def general_encode(x, scale, zero_point, quant_min, quant_max, form):
    """(quotient, kept, seen), form: 0 or 1 each, (divide, before, after, by_position, through, product)"""
    divide, before, after, by_position, through, product = form
    zp = tl.where(before + after > 0.0, zero_point, affine_zero_point(zero_point, quant_min, quant_max))
    within = tl.where(before > 0.0, zp, 0.0)
    beside = tl.where(before > 0.0, 0.0, zp)
    quotient = tl.where(divide > 0.0, tl.div_rn(x, scale), x * tl.div_rn(1.0, scale))
    position = quotient + within
    level = round_even(clamp(position, quant_min - beside - 1.0, quant_max - beside + 1.0)) + beside
    return quotient, clamp(level, quant_min, quant_max) - zp, tl.where(by_position > 0.0, position + beside, level)


@triton.jit
def general_decode(code, scale):
    """x_hat = (code - zp) * scale"""
    return code[1] * scale


@triton.jit
def general_gradient_terms(grad, x, scale, zero_point, quant_min, quant_max, form):
    """inside: (grad, grad (code - zp - x / scale), 0); else (0, grad (code - zp), -scale grad); NaN: (0, NaN, 0)"""
    quotient, kept, seen = general_encode(x, scale, zero_point, quant_min, quant_max, form)
    scaled_grad = grad * scale
    again = tl.where(form[0] > 0.0, tl.div_rn(scaled_grad, scale), scaled_grad * tl.div_rn(1.0, scale))
    bound = tl.where(form[4] > 0.0, seen, clamp(seen, quant_min, quant_max))
    inside = bound == seen
    outside = (bound < seen) | (bound > seen)  # NaN is neither
    to_x = tl.where(inside, tl.where(form[5] > 0.0, again, grad), 0.0)
    return to_x, grad * tl.where(inside, kept - quotient, kept), tl.where(outside, -scaled_grad, 0.0)


@triton.jit
def fake_quantize_affine_value(x, scale, zero_point, levels):
    """x_hat = (clamp(rint(x * (1/scale)) + zp, quant_min, quant_max) - zp) * scale"""
    quant_min, quant_max = levels
    zp = affine_zero_point(zero_point, quant_min, quant_max)
    level, kept = affine_encode(x, tl.div_rn(1.0, scale), zp, quant_min, quant_max)
    return affine_decode(kept, scale)


@triton.jit
def fake_quantize_affine_terms(grad, x, scale, zero_point, levels):
    """affine_gradient_terms at the rounded zero point"""
    quant_min, quant_max = levels
    zp = affine_zero_point(zero_point, quant_min, quant_max)
    return affine_gradient_terms(grad, x, scale, zp, quant_min, quant_max)


@triton.jit
def general_affine_value(x, scale, zero_point, levels):
    """x_hat = (code - zp) * scale in the form of levels"""
    quant_min, quant_max, form = levels
    return general_decode(general_encode(x, scale, zero_point, quant_min, quant_max, form), scale)


@triton.jit
def general_affine_terms(grad, x, scale, zero_point, levels):
    """general_gradient_terms in the form of levels"""
    quant_min, quant_max, form = levels
    return general_gradient_terms(grad, x, scale, zero_point, quant_min, quant_max, form)
