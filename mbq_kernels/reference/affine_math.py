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


def general_encode(x, scale, zero_point, quant_min: int, quant_max: int, form):
    """(quotient, kept, zero_point, inside, clipped): code = clamp(rint(x / scale + zp), lo, hi), or zp beside the rint

    form: (divide, before, after, by_position, through, product), how other people's code differs from the above.
    divide: x / scale. before, after: the zero point as it is, added before or after the rounding. by_position: clipped
    is what lies outside before the rounding. through: nothing is clipped for gradients. product: grad x as autograd has
    it, multiplied by the scale and divided again.
    """
    divide, before, after, by_position, through, _ = form
    zp = zero_point if before or after else affine_zero_point(zero_point, quant_min, quant_max)
    within, beside = (zp, 0.0) if before else (0.0, zp)
    quotient = x / scale if divide else x * (1 / scale)
    position = quotient + within
    lo, hi = torch.as_tensor(quant_min - beside - 1), torch.as_tensor(quant_max - beside + 1)
    level = torch.round(torch.clamp(position, lo.to(x), hi.to(x))) + beside
    seen = position + beside if by_position else level
    within_range, nan = (seen >= quant_min) & (seen <= quant_max), seen.isnan()
    inside = ~nan if through else within_range
    return quotient, torch.clamp(level, quant_min, quant_max), zp, inside, ~(inside | nan)


def general_decode(code, scale):
    """x_hat = (code - zp) * scale"""
    _, kept, zero_point, *_ = code
    return (kept - zero_point) * scale


def general_gradient_terms(grad, x, scale, zero_point, quant_min: int, quant_max: int, form):
    """Terms of (grad x, grad scale, grad zero_point) from one element.

    inside: (grad, grad (code - zp - x / scale), 0); else (0, grad (code - zp), -scale grad where clipped).
    """
    divide, *_, product = form
    quotient, kept, zp, inside, clipped = general_encode(x, scale, zero_point, quant_min, quant_max, form)
    scaled_grad = grad * scale
    again = scaled_grad / scale if divide else scaled_grad * (1 / scale)
    slope = torch.where(inside, kept - zp - quotient, kept - zp)
    return torch.where(inside, again if product else grad, 0), grad * slope, torch.where(clipped, -scaled_grad, 0)
