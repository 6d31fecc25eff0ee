"""quantize_codes: the integers behind fake_quantize."""

import torch

from .. import _checks as check
from .._library import define
from .._per_channel import filled
from .._scales import grouped, matched

NAME = "quantize_codes"


def _shape(x, scale, offset, bits, signed, axis):
    return torch.empty_like(x, dtype=torch.int8 if signed else torch.uint8)


_forward = define(NAME, "quantize_codes_forward",
                  "(Tensor x, Tensor scale, Tensor? offset, SymInt bits, bool signed, int? axis) -> Tensor", _shape)


def quantize_codes(x, scale, offset=None, *, bits, signed=True, axis=None, group_size=None):
    """Quantize x to the integer codes that fake_quantize rounds to.

    code = clamp(rint((x - offset) / scale), lo, hi); rint rounds half to even; signed 1 bit: +-1, the sign, 0 -> +1.

    Args:
        x: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - what to quantize. NaN raises on the CPU
            and becomes lo on CUDA (no host synchronisation).
        scale: one element of any shape, or with `axis` (C,) or what broadcasts along it alone, as (C, 1, 1, 1),
            floating point, or a number - size of one step, > 0.
        offset: as many elements as scale, floating point, or a number - real value of code 0; None is 0.
        bits: 1..8. signed: [-2^(bits-1), 2^(bits-1) - 1], else [0, 2^bits - 1].
        axis: the axis of x that has C channels, negative counts from the end; None is one scale for all of x.
        group_size: elements of the last axis that share a scale, as in fake_quantize.

    Returns:
        codes: int8 (uint8 unsigned), x's shape, the strides of torch.empty_like(x) (contiguous with group_size).

    Gradient: none, the result is an integer tensor; fake_quantize is the differentiable form.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: bits, axis, shape or device. RuntimeError, on the CPU: scale
        not finite and > 0, offset not finite, NaN in x.

    Equivalent to:
        ((x - offset) / scale).round().clamp(lo, hi).to(torch.int8)

    Reference: Jacob et al., 2018, arXiv 1712.05877, eq. 12; Esser et al., 2020, arXiv 1902.08153, eq. 1.
    """
    check.check_x(NAME, x)
    check.check_bits(NAME, bits)
    check.check_flag(NAME, "signed", signed)
    rows = x
    if group_size is not None:
        rows, (scale, offset) = grouped(NAME, x, group_size, axis, scale=scale, offset=offset)
        axis = 0
    axis, given = check.check_axis(NAME, rows, axis), (scale, offset)
    scale = check.check_parameter(NAME, "scale", filled(scale, rows), rows, axis)
    if offset is not None:
        offset = check.check_parameter(NAME, "offset", filled(offset, rows), rows, axis)
        scale, offset = matched(NAME, ("scale", "offset"), given, scale, offset)
    codes = _forward(rows, scale, offset, bits, signed, None if scale.numel() == 1 else axis)
    return codes if group_size is None else codes.reshape(x.shape)
