"""Quantizers as they are usually written, in a dozen eager PyTorch operations: the rivals of mbq_kernels."""

import math

import torch

from mbq_train.quantize.any_precision import grid, normalised
from mbq_train.quantize.bits import code_range


def fake_quantize(x, scale, offset=None, *, bits, signed=True, axis=None):
    """Quantize x to `bits` bits with a learned scale, from plain PyTorch operations and autograd.

    code = clamp(round((x - offset) / scale), lo, hi);  x_hat = code * scale + offset

    The same numbers and gradients as mbq_kernels.fake_quantize, up to the rounding of the scale's and offset's sums.
    For the backward autograd keeps two tensors of x's size besides x; the kernel keeps none.

    Args:
        x: any shape, float32, float64, bfloat16 or float16 - what to quantize.
        scale: one element, or (C,) with `axis` - size of one step, > 0.
        offset: scale's shape - real value of code 0; None is 0.
        bits, signed, axis: as in mbq_kernels.fake_quantize.

    Returns:
        x_hat: x's shape and dtype.

    Gradient: rounding is straight-through, clamping passes what lies in [lo, hi]; scale's and offset's gradients are
    multiplied by 1 / sqrt(N hi), N elements sharing a scale.

    Reference: Esser et al., "Learned Step Size Quantization", 2020, arXiv 1902.08153, eq. 1-3 and section 2.2; the
    detach form is that of the public lsq-net.
    """
    lo, hi = code_range(bits, signed)
    factor = 1 / math.sqrt(max(x.numel() // scale.numel(), 1) * hi)
    scale_ = _grad_scale(_per_channel(scale, x, axis), factor)
    offset_ = 0 if offset is None else _grad_scale(_per_channel(offset, x, axis), factor)
    v = x.to(scale_.dtype) if offset is None else x - offset_
    code = _round_pass if (bits, signed) != (1, True) else _sign_pass
    x_hat = code(torch.clamp(v / scale_, lo, hi)) * scale_
    return (x_hat if offset is None else x_hat + offset_).to(x.dtype)


def double_round(x, scale, *, high_bits=8, bits, axis=None, rounding="half_even", scale_chain=False):
    """Quantize x to `high_bits` bits and round the codes again to `bits`, from plain PyTorch operations and autograd.

    code_h = clamp(round(x / scale), lo_h, hi_h);  code = clamp(round(code_h / 2^D), lo, hi), D = high_bits - bits
    x_hat = code * scale * 2^D

    The same numbers and gradients as mbq_kernels.double_round, up to the rounding of the scale's sum.

    Args:
        x: any shape, float32, float64, bfloat16 or float16 - what to quantize.
        scale: one element, or (C,) with `axis` - size of a step at high_bits, > 0.
        high_bits, bits, axis, rounding, scale_chain: as in mbq_kernels.double_round; one bit-width.

    Returns:
        x_hat: x's shape and dtype.

    Gradient: both roundings are straight-through as one, clamping passes what lies in [lo, hi]; scale's gradient is
    multiplied by 1 / sqrt(N hi), N elements sharing a scale.

    Reference: Huang et al., 2025, arXiv 2502.01199, eq. 1-3 and 13-14.
    """
    (high_lo, high_hi), (lo, hi), ratio = code_range(high_bits, True), code_range(bits, True), 2 ** (high_bits - bits)
    factor = 1 / math.sqrt(max(x.numel() // scale.numel(), 1) * hi)
    scale_ = _per_channel(scale, x, axis)
    step = _grad_scale(scale_ * ratio, factor if scale_chain else factor / ratio)
    position = torch.clamp((x.to(scale_.dtype) / scale_.detach()).round(), high_lo, high_hi) / ratio
    code = torch.clamp(torch.floor(position + 0.5) if rounding == "half_up" else position.round(), lo, hi)
    v = torch.clamp(x.to(scale_.dtype) / step, lo, hi)
    return (((code - v).detach() + v) * step).to(x.dtype)


def round_clamp(x, *, bits, form="offset"):
    """Quantize x to `bits` bits by its largest value, from plain PyTorch operations and autograd.

    offset: u = x / (2 max|x|) + 1/2;  x_hat = (code - 2^(bits-1)) max|x| 2^(1-bits)
    sign-magnitude: u = |x| / max|x|;  x_hat = sign(x) code max|x| / (2^bits - 1)
    code = min(round(2^bits u), 2^bits - 1)

    The same numbers and gradients as mbq_kernels.round_clamp.

    Args:
        x: any shape, float32, float64, bfloat16 or float16 - what to quantize.
        bits: 1 to 8.
        form: 'offset' or 'sign-magnitude'.

    Returns:
        x_hat: x's shape and dtype.

    Gradient: rounding is straight-through, nothing is clamped away, the maximum is a constant.

    Reference: Han et al., 2025, arXiv 2507.22349.
    """
    wide, top = x.detach().to(torch.promote_types(x.dtype, torch.float32)), 2**bits - 1
    limit = wide.abs().max()
    position = wide / torch.where(limit == 0, 1, limit)
    offset = form == "offset"
    u = position * 0.5 + 0.5 if offset else position.abs()
    code = torch.clamp((2**bits * u).round(), max=top)
    code = code - 2 ** (bits - 1) if offset else code * wide.sign()
    scale = limit / torch.full_like(limit, 2 ** (bits - 1) if offset else top)
    return (code * scale).to(x.dtype) + (x - x.detach())


def fake_quantize_corrected(x, scale, offset=None, *, bits, signed=True, axis=None):
    """Return fake_quantize of x with the mean and deviation of x in every channel (axis 0) (Kim et al., 2025, arXiv
    2510.20673).

    Statistics are constants in the gradient. The same numbers as mbq_kernels.fake_quantize_corrected to rounding.
    """
    return corrected(fake_quantize(x, scale, offset, bits=bits, signed=signed, axis=axis), x)


def corrected_double_round(x, scale, **options):
    """Return double_round of x, corrected as in fake_quantize_corrected."""
    return corrected(double_round(x, scale, **options), x)


def any_precision(weight, *, bits, correction=False):
    """Return quantize.any_precision.any_precision, from the same normalised weight."""
    x, reach = normalised(weight)
    quantize = fake_quantize_corrected if correction else fake_quantize
    return quantize(x, *grid(reach, bits), bits=bits, signed=False)


def corrected(x_hat, x):
    """Return sd(x) / sd(x_hat) * (x_hat - mean(x_hat)) + mean(x) in every channel; a constant one becomes mean(x)."""
    rows, wanted = x_hat.flatten(1), x.detach().flatten(1)
    deviation, mean = torch.std_mean(rows.detach(), dim=1, keepdim=True)
    wanted_deviation, wanted_mean = torch.std_mean(wanted, dim=1, keepdim=True)
    constant = deviation <= 1e-6 * rows.detach().abs().amax(dim=1, keepdim=True)
    factor = torch.where(constant, 0.0, wanted_deviation / (deviation + 1e-8))
    return (factor * (rows - mean) + wanted_mean).view_as(x_hat)


def _per_channel(parameter, x, axis):
    """Return a scale or offset in a shape that broadcasts against x, in float32 (float64 with float64 x)."""
    parameter = parameter.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if axis is None or parameter.numel() == 1:
        return parameter.reshape([1] * x.dim())
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


def _grad_scale(x, factor):
    """Return x exactly, with its gradient multiplied by factor."""
    y = x * factor
    return x.detach() + (y - y.detach())


def _round_pass(x):
    """Return round(x), straight through."""
    return (x.round() - x).detach() + x


def _sign_pass(x):
    """Return the sign of x with 0 -> +1, straight through."""
    return (torch.where(x >= 0, 1.0, -1.0).to(x.dtype) - x).detach() + x
