"""fake_quantize: round to one bit-width and back in one pass, with LSQ gradients."""

import torch

from .. import _checks as check
from .._library import define
from .._per_channel import filled
from .._scales import factor_of, grouped, matched, outside
from ..reference.quant_math import bounds, default_grad_factor
from ._affine import FakeQuantizeAffine, affine_form
from ._function import BackwardFunction, apply

NAME = "fake_quantize"


def _forward_shape(x, scale, offset, scale_unit, scale_floor, bits, signed, axis, out_dtype):
    return torch.empty_like(x, dtype=out_dtype or x.dtype)


def _backward_shape(grad, x, scale, offset, scale_unit, scale_floor, bits, signed, axis, grad_factor):
    grad_offset = scale.new_empty(0) if offset is None else offset.new_empty(offset.shape)
    return torch.empty_like(x), scale.new_empty(scale.shape), grad_offset


_forward = define(NAME, "fake_quantize_forward",
                  "(Tensor x, Tensor scale, Tensor? offset, Tensor? scale_unit, Tensor? scale_floor, SymInt bits, "
                  "bool signed, int? axis, ScalarType? out_dtype) -> Tensor", _forward_shape)
_backward = define(NAME, "fake_quantize_backward",
                   "(Tensor grad, Tensor x, Tensor scale, Tensor? offset, Tensor? scale_unit, Tensor? scale_floor, "
                   "SymInt bits, bool signed, int? axis, float? grad_factor) -> (Tensor, Tensor, Tensor)",
                   _backward_shape)


class FakeQuantizeBackward(BackwardFunction):
    @staticmethod
    def forward(grad, x, scale, offset, scale_unit, scale_floor, options):
        bits, signed, axis, grad_factor, _ = options
        return _backward(grad, x, scale, offset, scale_unit, scale_floor, bits, signed, axis, grad_factor)


class FakeQuantize(torch.autograd.Function):
    """Options are (bits, signed, axis, grad_factor, out_dtype)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale, offset, scale_unit, scale_floor, options):
        bits, signed, axis, _, out_dtype = options
        return _forward(x, scale, offset, scale_unit, scale_floor, bits, signed, axis, out_dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:-1])
        ctx.options = inputs[-1]

    @staticmethod
    @torch.no_grad()
    def outputs_again(ctx):
        return (FakeQuantize.forward(*ctx.saved_tensors, ctx.options),)

    @staticmethod
    def backward(ctx, grad):
        x, scale, offset, scale_unit, scale_floor = ctx.saved_tensors
        grad_x, grad_scale, grad_offset = apply(
            FakeQuantizeBackward, grad, x, scale, offset, scale_unit, scale_floor, ctx.options)
        return grad_x, grad_scale, None if offset is None else grad_offset, None, None, None


def fake_quantize(x, scale, offset=None, *, bits, signed=True, narrow=False, axis=None, group_size=None,
                  grad_factor=None, out_dtype=None, scale_unit=None, scale_floor=None):
    """Quantize x to `bits` bits with a learned scale and return the real values the codes stand for.

    code = clamp(rint((x - offset) / scale), lo, hi);  x_hat = code * scale + offset
    [lo, hi] = [-2^(bits-1), 2^(bits-1) - 1] signed, [0, 2^bits - 1] unsigned; signed 1 bit: code = +-1, the sign of
    (x - offset), with 0 -> +1. rint rounds half to even. +-inf is clamped, NaN stays NaN.

    Args:
        x: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - what to quantize.
        scale: one element of any shape, or with `axis` (C,) or what broadcasts along it alone, as (C, 1, 1, 1),
            floating point, or a number (a constant) - size of one step, > 0, or with scale_floor any finite value. On
            CPU other values raise; on CUDA values are not looked at (no host synchronisation).
        offset: as many elements as scale, floating point, or a number (a constant) - real value of code 0; None is 0.
        bits: 1..8 - may change from call to call without a recompile.
        signed: which of the two code ranges.
        narrow: without the lowest code, [-hi, hi] - signed, of 2 bits or more, and without offset, scale_unit,
            scale_floor and another out_dtype.
        axis: the axis of x that has C channels, negative counts from the end; None is one scale for all of x.
        group_size: gives as many elements of the last axis, which it divides, a scale of their own: all parameters of
            one element or of shape (..., K / group_size) for x (..., K), or (rows, K / group_size) with the axes before
            in one; axis is None.
        grad_factor: multiplies the gradients of scale and offset [default 1 / sqrt(n hi), n elements sharing a scale];
            "tensor" is LSQ repositories' 1 / sqrt(x.numel() hi), also with an axis or groups.
        out_dtype: dtype of the result, rounded to once [default x's].
        scale_unit, scale_floor: like scale, floating point, finite and > 0, constants; None: 1, and no floor. The scale
            of x_hat and of all gradients is max(scale * scale_unit, scale_floor), its product rounded once. The
            gradient of scale is that of the maximum divided by scale_unit: scale counts in units, and a step of SGD
            moves the product as it would move a parameter that is the scale itself. A scale below the floor, or below
            0, gets its gradient too, so that it can come back.

    Returns:
        x_hat: x's shape, the strides of torch.empty_like(x) (contiguous with group_size), `out_dtype`.

    Gradient, with v = (x - offset) / scale: x gets grad where lo <= v <= hi, else 0 (straight through, in x's dtype);
    scale gets grad_factor * sum(grad * (code - v inside | lo below | hi above)); offset gets grad_factor * sum(grad
    outside). Both have their parameter's shape; numbers, scale_unit and scale_floor get none. NaN in x gives NaN to
    scale alone. Sums are deterministic. Saved are x, scale, offset, scale_unit and scale_floor alone (parameters of
    another dtype than the arithmetic's as converted copies).

    Raises:
        TypeError: a dtype or type is wrong. ValueError: bits, axis, shape or device. RuntimeError: on CPU, scale,
        scale_unit, their product or scale_floor not finite and > 0 (a scale with a floor: not finite); double backward.

    Equivalent to (forward; scale standing for max(scale * scale_unit, scale_floor)):
        ((x - offset) / scale).round().clamp(lo, hi) * scale + offset

    Reference: Esser et al., "Learned Step Size Quantization", 2020, arXiv 1902.08153, eq. 1-3; the offset: Bhalgat
    et al., "LSQ+", 2020, arXiv 2004.09576.
    """
    check.check_x(NAME, x)
    check.check_bits(NAME, bits)
    check.check_flag(NAME, "signed", signed)
    check.check_out_dtype(NAME, x, out_dtype)
    rows = x
    if group_size is not None:
        rows, (scale, offset, scale_unit, scale_floor) = grouped(
            NAME, x, group_size, axis, scale=scale, offset=offset, scale_unit=scale_unit, scale_floor=scale_floor)
        axis = 0
    axis, given = check.check_axis(NAME, rows, axis), (scale, offset)
    scale = check.check_parameter(NAME, "scale", filled(scale, rows), rows, axis)
    if offset is not None:
        offset = check.check_parameter(NAME, "offset", filled(offset, rows), rows, axis)
        scale, offset = matched(NAME, ("scale", "offset"), given, scale, offset)
    scale_unit = check.check_beside(NAME, "scale_unit", scale_unit, scale, rows, axis)
    scale_floor = check.check_beside(NAME, "scale_floor", scale_floor, scale, rows, axis)
    axis = None if scale.numel() == 1 else axis
    if grad_factor is not None:
        grad_factor = factor_of(NAME, grad_factor, x, bounds(bits, signed)[1])
    check.check_flag(NAME, "narrow", narrow)
    if narrow:
        _check_narrow(bits, signed, offset, scale_unit, scale_floor, out_dtype not in (None, x.dtype))
        out = _narrow(rows, scale, bits, axis, grad_factor)
    else:
        grad_factor, scale, offset = outside(grad_factor, scale, offset)
        options = (bits, signed, axis, grad_factor, out_dtype)
        out = apply(FakeQuantize, rows, scale, offset, scale_unit, scale_floor, options)
    return out if group_size is None else out.reshape(x.shape)


def _check_narrow(bits, signed, offset, scale_unit, scale_floor, casts):
    if not signed or bits < 2:
        raise ValueError(f"{NAME}: narrow must be False where codes are unsigned or have 1 bit, got True")
    for name, there in (("offset", offset is not None), ("scale_unit", scale_unit is not None),
                        ("scale_floor", scale_floor is not None), ("another out_dtype", casts)):
        if there:
            raise ValueError(f"{NAME}: narrow must be False with {name}, got True")


def _narrow(x, scale, bits, axis, grad_factor):
    """Quantize to [-hi, hi] with the affine operators: their range is free, and so are a division and LSQ's mask."""
    hi = 2 ** (bits - 1) - 1
    if grad_factor is None:
        grad_factor = default_grad_factor(x.numel() // max(scale.numel(), 1), hi)
    grad_factor, scale = outside(grad_factor, scale)
    options = (-hi, hi, axis, grad_factor, affine_form(divide=True, by_position=True))
    return apply(FakeQuantizeAffine, x, scale, torch.zeros_like(scale), options)
