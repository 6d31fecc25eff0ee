"""The arithmetic of fake-quantization in Triton, float32. Its twins: math/quant_math.h and reference/quant_math.py.

Comparisons and selects stand for min and max: like the twins they keep NaN. Launch with enable_fp_fusion=False.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def round_even(v):
    """rint(v) for |v| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction"""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def clamp(v, lo, hi):
    """v within [lo, hi]; NaN stays NaN"""
    raised = tl.where(v < lo, lo, v)
    return tl.where(raised > hi, hi, raised)


@triton.jit
def effective_scale(scale, unit, floor):
    """max(scale * unit, floor), the scale that is computed with; NaN stays NaN"""
    size = scale * unit
    return tl.where(size < floor, floor, size)


@triton.jit
def scaled(x, scale, offset):
    """v = (x - offset) / scale"""
    return tl.div_rn(x - offset, scale)


@triton.jit
def encode(v, lo, hi):
    """code = clamp(rint(v), lo, hi), half to even; sign(v) with +-0 -> +1 when lo = -hi (1 bit)"""
    level = round_even(clamp(v, lo, hi))  # before the sign: in the other order ptxas spills a register on sm_90
    sign = tl.where(v < 0.0, lo, tl.where(v >= 0.0, hi, v))
    return tl.where(lo == -hi, sign, level)


@triton.jit
def decode(code, scale, offset):
    """x_hat = code * scale + offset"""
    return code * scale + offset


@triton.jit
def gradient_terms(grad, v, code, lo, hi):
    """inside: (grad, grad (code - v), 0); below: (0, grad lo, grad); above: (0, grad hi, grad); NaN: (0, NaN, 0)"""
    bound = clamp(v, lo, hi)
    inside = bound == v
    outside = (bound < v) | (bound > v)  # NaN is neither
    slope = tl.where(inside, code - v, bound)
    return tl.where(inside, grad, 0.0), grad * slope, tl.where(outside, grad, 0.0)


@triton.jit
def second_encode(code, again):
    """clamp(round(code / ratio), lo, hi) of a code in [lo ratio, hi ratio], which the clamp leaves as it is"""
    ratio, inv_ratio, nudge = again
    return round_even(code * inv_ratio + nudge)


@triton.jit
def double_decode(code, again, scale):
    """x_hat = (code * 2^D) * scale: one rounding, and no overflow that x_hat has not"""
    return code * again[0] * scale


@triton.jit
def switch_code(code, switch):
    """code_l = (kept + bias + (floor(kept / 2^D) & odd)) >> D, kept = min(code, top), of a code of the higher range"""
    shift, bias, odd, top = switch
    kept = tl.minimum(code, top)
    return (kept + bias + ((kept >> shift) & odd)) >> shift


@triton.jit
def unit_position(x, limit, form):
    """u = x / limit * half + centre, of |x| where mirror is -1; for x = 0 it is centre at limit 0 too"""
    half, centre, less, mirror = form
    size = tl.where(x < 0.0, x * mirror, x)
    return tl.where(x == 0.0, centre, tl.div_rn(size, limit) * half + centre)


@triton.jit
def within_unit(u):
    """u within [0, 1], NaN to 0"""
    raised = tl.where(u >= 0.0, u, 0.0)
    return tl.where(raised > 1.0, 1.0, raised)


@triton.jit
def round_clamp_code(u, steps):
    """c = min(rint(steps u), steps - 1), half to even, of u in [0, 1]; steps = 2^bits"""
    level = round_even(u * steps)
    return tl.where(level < steps, level, steps - 1.0)


@triton.jit
def round_clamp_scale(limit, steps, form):
    """What a signed code is multiplied by, limit / (steps half - less): of a weight limit * 2^(1 - bits), or
    limit / (2^bits - 1) in the sign-magnitude form"""
    half, centre, less, mirror = form
    return tl.div_rn(limit, steps * half - less)


@triton.jit
def round_clamp_signed(code, x, steps, form):
    """c - steps centre, or the sign of x times c; 0 - c has no -0, which no integer stands for"""
    half, centre, less, mirror = form
    level = code - steps * centre
    return tl.where((x < 0.0) & (mirror < 0.0), 0.0 - level, level)


@triton.jit
def lsb_residual(u, steps, coarse, ratio):
    """B = c_n(u) - 2^k c_(n-k)(u), steps = 2^n, coarse = 2^(n-k), ratio = 2^k; every operation is exact"""
    return round_clamp_code(u, steps) - ratio * round_clamp_code(u, coarse)


@triton.jit
def lsb_slope(grad_penalty, limit, factor):
    """The penalty's gradient where B > 0, grad_penalty * factor / limit; factor = 2^bits * half, or half alone"""
    return tl.div_rn(grad_penalty * factor, limit)


@triton.jit
def lsb_gradient(grad, x, residual, slope, form):
    """grad + slope sign(B) d|x|/dx: the task's gradient straight through, the penalty's beside it; d|x|/dx is mirror
    for negative x"""
    rise = tl.where(x < 0.0, slope * form[3], slope)
    return grad + tl.where(residual > 0.0, rise, tl.where(residual < 0.0, -rise, 0.0))


@triton.jit
def fake_quantize_value(x, scale, offset, levels):
    """x_hat = clamp(rint((x - offset) / scale), lo, hi) * scale + offset"""
    lo, hi = levels
    return decode(encode(scaled(x, scale, offset), lo, hi), scale, offset)


@triton.jit
def fake_quantize_terms(grad, x, scale, offset, levels):
    """gradient_terms at v = (x - offset) / scale"""
    lo, hi = levels
    v = scaled(x, scale, offset)
    return gradient_terms(grad, v, encode(v, lo, hi), lo, hi)


@triton.jit
def _double_round_code(v, levels):
    """The code of v = x / scale; codes of high_bits above hi ratio all become hi, so one clamp does for both"""
    lo, hi, again = levels
    return second_encode(round_even(clamp(v, lo * again[0], hi * again[0])), again)


@triton.jit
def double_round_value(x, scale, offset, levels):
    """x_hat = clamp(round(clamp(rint(x / scale), high_lo, high_hi) / 2^D), lo, hi) * 2^D * scale; there is no offset"""
    return double_decode(_double_round_code(scaled(x, scale, 0.0), levels), levels[2], scale)


@triton.jit
def double_round_terms(grad, x, scale, offset, levels):
    """gradient_terms at v = x / (scale 2^D)"""
    v = scaled(x, scale, 0.0)
    return gradient_terms(grad, v * levels[2][1], _double_round_code(v, levels), levels[0], levels[1])


@triton.jit
def quantize_codes_value(x, scale, offset, levels):
    """code = clamp(rint((x - offset) / scale), lo, hi), NaN to lo"""
    lo, hi = levels
    code = encode(scaled(x, scale, offset), lo, hi)
    return tl.where(code == code, code, lo)


@triton.jit
def from_storage(value):
    """value in float32; the interpreter takes bfloat16's subnormals for 0, so there by integer bits"""
    if INTERPRETED and value.dtype == tl.bfloat16:
        value = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def to_storage(value, dtype: tl.constexpr):
    """value rounded to dtype, half to even; the interpreter truncates to bfloat16, so there by integer bits"""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = tl.where(value == value, rounded, 0x7FC00000).to(tl.uint32).to(tl.float32, bitcast=True)
    return value.to(dtype)
