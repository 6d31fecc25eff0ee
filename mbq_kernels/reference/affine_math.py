"""The arithmetic of fake_quantize_affine in PyTorch. Its twins: csrc/math/affine_math.h and triton/affine_math.py.

affine_*: torch.ao's; general_*: that of other people's code. Every operation rounds by itself.
"""

import torch


def affine_zero_point(zero_point, quant_min: int, quant_max: int):
    """zp = clamp(rint(zero_point), quant_min, quant_max)"""
    return torch.clamp(torch.round(zero_point), quant_min, quant_max)


def affine_encode(x, inv_scale, zero_point, quant_min: int, quant_max: int):
    """Codes less zp, (level, kept): level = rint(x * inv_scale), cut off one step outside; kept = level in range."""
    lo, hi = quant_min - zero_point, quant_max - zero_point
    level = torch.round(torch.clamp(x * inv_scale, lo - 1, hi + 1))
    return level, torch.clamp(level, lo, hi)


def affine_decode(kept, scale):
    """x_hat = (code - zp) * scale"""
    return kept * scale


def affine_gradient_terms(grad, x, scale, zero_point, quant_min: int, quant_max: int):
    """Terms of (grad x, grad scale, grad zero_point) from one element.

    inside: (grad, grad (x_hat - x) / scale, 0); clipped to code c: (0, grad (c - zp), -scale grad); x NaN: (0, NaN, 0).
    """
    inv_scale = 1 / scale
    level, kept = affine_encode(x, inv_scale, zero_point, quant_min, quant_max)
    inside, clipped = kept == level, (kept < level) | (kept > level)  # NaN is neither
    slope = torch.where(inside, (affine_decode(kept, scale) - x) * inv_scale, kept)
    return torch.where(inside, grad, 0), grad * slope, torch.where(clipped, -(scale * grad), 0)


def dynamic_range(least, greatest, quant_min: int, quant_max: int, symmetric: bool, eps: float, dtype):
    """(scale, zero point) of rows with values from least <= 0 to greatest >= 0, every step rounded to x's dtype.

    symmetric: max(-least, greatest) / ((hi - lo) / 2), int((hi + lo + 1) / 2); else (greatest - least) / (hi - lo),
    clamp(lo - rint(least / scale), lo, hi). scale is at least eps.
    """
    def rounded(value):
        return value.to(dtype).to(value.dtype)

    steps, floor = torch.full_like(least, quant_max - quant_min), rounded(torch.full_like(least, eps))
    if symmetric:
        scale = torch.maximum(rounded(torch.maximum(-least, greatest) / (steps / 2)), floor)
        return scale, torch.full_like(least, int((quant_max + quant_min + 1) / 2))
    scale = torch.maximum(rounded(rounded(greatest - least) / steps), floor)
    zero_point = rounded(quant_min - torch.round(rounded(least / scale)))
    return scale, torch.clamp(zero_point, quant_min, quant_max)


def dynamic_gradient(grad, x, scale, zero_point, quant_min: int, quant_max: int, product: bool):
    """inside: grad, or with `product` (grad * scale) * (1 / scale); else 0, NaN too"""
    level, kept = affine_encode(x, 1 / scale, zero_point, quant_min, quant_max)
    return torch.where(kept == level, grad * scale * (1 / scale) if product else grad, 0)


def general_encode(x, scale, zero_point, quant_min: int, quant_max: int, form):
    """(quotient, kept, seen): code = clamp(rint(x / scale + zp), lo, hi), or clamp(rint(x / scale) + zp, lo, hi)

    kept: the code less zp; seen: what is inside the range or outside, for gradients.
    form: (divide, before, after, by_position, through, product), how other people's code differs from the above.
    divide: x / scale. before, after: the zero point as it is, added before or after the rounding. by_position: clipped
    is what lies outside before the rounding. through: nothing is clipped for gradients. product: grad x as autograd has
    it, multiplied by the scale and divided again.
    """
    divide, before, after, by_position, *_ = form
    zp = zero_point if before or after else affine_zero_point(zero_point, quant_min, quant_max)
    within, beside = (zp, torch.zeros_like(zp)) if before else (0.0, zp)
    quotient = x / scale if divide else x * (1 / scale)
    position = quotient + within
    level = torch.round(torch.clamp(position, quant_min - beside - 1, quant_max - beside + 1)) + beside
    return quotient, torch.clamp(level, quant_min, quant_max) - zp, position + beside if by_position else level


def general_decode(code, scale):
    """x_hat = (code - zp) * scale"""
    return code[1] * scale


def general_gradient_terms(grad, x, scale, zero_point, quant_min: int, quant_max: int, form):
    """Terms of (grad x, grad scale, grad zero_point) from one element.

    inside: (grad, grad (code - zp - x / scale), 0); else (0, grad (code - zp), -scale grad); NaN: (0, NaN, 0).
    """
    divide, *_, through, product = form
    quotient, kept, seen = general_encode(x, scale, zero_point, quant_min, quant_max, form)
    scaled_grad = grad * scale
    again = scaled_grad / scale if divide else scaled_grad * (1 / scale)
    bound = seen if through else torch.clamp(seen, quant_min, quant_max)
    inside, outside = bound == seen, (bound < seen) | (bound > seen)  # NaN is neither
    slope = torch.where(inside, kept - quotient, kept)
    return torch.where(inside, again if product else grad, 0), grad * slope, torch.where(outside, -scaled_grad, 0)
