"""The arithmetic of quantization in PyTorch. Its twins: csrc/math/quant_math.h and triton/quant_math.py.

Arithmetic is float32 (float64 for float64 tensors); every operation rounds by itself.
"""

import math

import torch


def bounds(bits: int, signed: bool) -> tuple[float, float]:
    """Lowest and highest code: [-2^(b-1), 2^(b-1)-1] signed, [0, 2^b-1] unsigned, {-1, +1} signed at 1 bit."""
    if not signed:
        return 0.0, 2.0**bits - 1
    return (-1.0, 1.0) if bits == 1 else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


def effective_scale(scale, unit, floor):
    """max(scale * unit, floor), the scale that is computed with; NaN stays NaN"""
    size = scale * unit
    return torch.where(size < floor, floor, size)


def scaled(x, scale, offset):
    """v = (x - offset) / scale"""
    return (x - offset) / scale


def encode(v, lo: float, hi: float):
    """code = clamp(rint(v), lo, hi), half to even; sign(v) with +-0 -> +1 when lo = -hi (1 bit); NaN stays NaN"""
    if lo == -hi:
        return torch.where(v < 0, lo, torch.where(v >= 0, hi, v))
    return torch.round(torch.clamp(v, lo, hi))


def decode(code, scale, offset):
    """x_hat = code * scale + offset"""
    return code * scale + offset


def gradient_terms(grad, v, code, lo: float, hi: float):
    """Terms of (grad x, grad scale, grad offset) from one element; the last two are to be summed over the channel.

    inside = lo <= v <= hi: (grad, grad (code - v), 0); below: (0, grad lo, grad); above: (0, grad hi, grad);
    v NaN: (0, NaN, 0).
    """
    bound = torch.clamp(v, lo, hi)
    inside, outside = bound == v, (bound < v) | (bound > v)  # NaN is neither
    slope = torch.where(inside, code - v, bound)
    return torch.where(inside, grad, 0), grad * slope, torch.where(outside, grad, 0)


def default_grad_factor(count: int, hi: float) -> float:
    """1 / sqrt(count hi), LSQ's factor; count = elements that share the scale"""
    return 1 / math.sqrt(max(count, 1) * hi)


def second_rounding(ratio: float, half_up: bool) -> tuple[float, float, float]:
    """(ratio, inv_ratio, nudge) to codes ratio = 2^D times coarser; nudge, added to a position, decides its ties

    Positions are multiples of 2^-6 (D <= 6): nothing but ties passes a tie by 2^-8.
    """
    return ratio, 1 / ratio, 2.0**-8 if half_up else 0.0


def second_encode(code, again):
    """clamp(round(code / ratio), lo, hi) of a code in [lo ratio, hi ratio], which the clamp leaves as it is"""
    _, inv_ratio, nudge = again
    return torch.round(code * inv_ratio + nudge)


def double_decode(code, again, scale):
    """x_hat = (code * 2^D) * scale: one rounding, and no overflow that x_hat has not"""
    return code * again[0] * scale


def switching(from_bits: int, to_bits: int, half_even: bool) -> tuple[int, int, int, int]:
    """(shift, bias, odd, top) of switch_code: bias + (quotient & odd) is what the rounding adds before the floor.

    Codes above `top` would round to hi + 1; cut off at `top` they become hi.
    """
    shift = from_bits - to_bits
    odd, half = int(shift > 0 and half_even), (1 << shift) // 2
    return shift, half - odd, odd, int(bounds(from_bits, True)[1]) - half


def switch_code(code, switch):
    """code_l = (kept + bias + (floor(kept / 2^D) & odd)) >> D, kept = min(code, top), of a code of the higher range"""
    shift, bias, odd, top = switch
    kept = torch.clamp(code, max=top)
    return (kept + bias + ((kept >> shift) & odd)) >> shift


def unit_form(is_weight: bool, sign_magnitude: bool) -> tuple[float, float, float, float]:
    """(half, centre, less, mirror): how x becomes u in [0, 1], and codes become values

    less: steps fewer than 2^bits; mirror: what negative x are multiplied by.
    """
    half = 0.5 if is_weight and not sign_magnitude else 1.0
    return half, 1 - half, float(sign_magnitude), -1.0 if is_weight and sign_magnitude else 1.0


def unit_position(x, limit, form):
    """u = x / limit * half + centre, of |x| where mirror is -1; for x = 0 it is centre at limit 0 too"""
    half, centre, _, mirror = form
    size = torch.where(x < 0, x * mirror, x)
    return torch.where(x == 0, centre, size / limit * half + centre)


def within_unit(u):
    """u within [0, 1], NaN to 0"""
    return torch.clamp(torch.where(u >= 0, u, 0), max=1)


def round_clamp_code(u, steps: float):
    """c = min(rint(steps u), steps - 1), half to even, of u in [0, 1]; steps = 2^bits"""
    return torch.clamp(torch.round(u * steps), max=steps - 1)


def round_clamp_scale(limit, steps: float, form):
    """What a signed code is multiplied by, limit / (steps half - less): of a weight limit * 2^(1 - bits), or
    limit / (2^bits - 1) in the sign-magnitude form"""
    half, _, less, _ = form
    return limit / torch.full_like(limit, steps * half - less)  # by a number, CUDA multiplies with 1 / number


def round_clamp_signed(code, x, steps: float, form):
    """c - steps centre, or the sign of x times c; 0 - c has no -0, which no integer stands for"""
    _, centre, _, mirror = form
    level = code - steps * centre
    return torch.where((x < 0) & (mirror < 0), 0 - level, level)


def lsb_residual(u, steps: float, coarse: float, ratio: float):
    """B = c_n(u) - 2^k c_(n-k)(u), steps = 2^n, coarse = 2^(n-k), ratio = 2^k; every operation is exact"""
    return round_clamp_code(u, steps) - ratio * round_clamp_code(u, coarse)


def lsb_slope(grad_penalty, limit, factor: float):
    """The penalty's gradient where B > 0, grad_penalty * factor / limit; factor = 2^bits * half, or half alone"""
    return grad_penalty * factor / limit


def lsb_gradient(grad, x, residual, slope, form):
    """grad + slope sign(B) d|x|/dx: the task's gradient straight through, the penalty's beside it; d|x|/dx is mirror
    for negative x"""
    rise = torch.where(x < 0, slope * form[3], slope)
    return grad + torch.where(residual > 0, rise, torch.where(residual < 0, -rise, 0))
