"""fake_quantize_corrected: fake-quantize and give every channel the mean and deviation of the float weight."""

import math

import torch

from .. import _checks as check
from .._library import define
from .._per_channel import filled
from ._function import BackwardFunction, apply

NAME = "fake_quantize_corrected"


def _fold_shape(x, scales, offsets, scale_units, scale_floors, reference, bits, signed, axis):
    return scales.new_empty((3, *scales.shape))


def _forward_shape(x, scales, offsets, scale_units, scale_floors, folded, bits, signed, axis, out_dtype):
    return [torch.empty_like(x, dtype=out_dtype or x.dtype) for _ in bits]


def _backward_shape(grads, x, scales, offsets, scale_units, scale_floors, folded, bits, signed, axis, grad_factor):
    grad_offsets = scales.new_empty(0) if offsets is None else offsets.new_empty(offsets.shape)
    return torch.empty_like(x), scales.new_empty(scales.shape), grad_offsets


# All parameters are (K, C) here; folded is (3, K, C): the factor, scale' and offset' of every channel.
_fold = define(NAME, "fake_quantize_corrected_fold",
               "(Tensor x, Tensor scales, Tensor? offsets, Tensor? scale_units, Tensor? scale_floors, "
               "Tensor? reference, SymInt[] bits, bool signed, int? axis) -> Tensor", _fold_shape)
_forward = define(NAME, "fake_quantize_corrected_forward",
                  "(Tensor x, Tensor scales, Tensor? offsets, Tensor? scale_units, Tensor? scale_floors, "
                  "Tensor folded, SymInt[] bits, bool signed, int? axis, ScalarType? out_dtype) -> Tensor[]",
                  _forward_shape)
_backward = define(NAME, "fake_quantize_corrected_backward",
                   "(Tensor[] grads, Tensor x, Tensor scales, Tensor? offsets, Tensor? scale_units, "
                   "Tensor? scale_floors, Tensor folded, SymInt[] bits, bool signed, int? axis, float? grad_factor) "
                   "-> (Tensor, Tensor, Tensor)", _backward_shape)


def _spread(parameters, count: int):
    """Return (K, C): a row of one parameter stands for all channels."""
    if parameters is None or parameters.shape[1] == count:
        return parameters
    return parameters.expand(-1, count)


def _rows(x, scales, offsets, scale_units, scale_floors, axis):
    """Return all four, spread over the channels of x."""
    count = 1 if axis is None else x.shape[axis]
    return (_spread(scales, count), _spread(offsets, count), _spread(scale_units, count),
            _spread(scale_floors, count))


def _gathered(grad, parameters, grad_factor):
    """Return gradients (K, C) for parameters that may have been spread: LSQ's factor then is of all channels' elements.
    """
    if parameters is None or grad.shape == parameters.shape:
        return grad
    factor = 1 / math.sqrt(max(grad.shape[1], 1)) if grad_factor is None else 1.0
    return (grad.double().sum(1, keepdim=True) * factor).to(grad.dtype)


def _gradients(grads, x, scales, offsets, scale_units, scale_floors, folded, options):
    bits, signed, axis, grad_factor, _ = options
    rows = _rows(x, scales, offsets, scale_units, scale_floors, axis)
    grad_x, grad_scales, grad_offsets = _backward(list(grads), x, *rows, folded, bits, signed, axis, grad_factor)
    return grad_x, _gathered(grad_scales, scales, grad_factor), _gathered(grad_offsets, offsets, grad_factor)


class FakeQuantizeCorrectedBackward(BackwardFunction):
    @staticmethod
    def forward(x, scales, offsets, scale_units, scale_floors, folded, options, *grads):
        return _gradients(grads, x, scales, offsets, scale_units, scale_floors, folded, options)


class FakeQuantizeCorrected(torch.autograd.Function):
    """x_hat of every bit-width, and what was folded into their scales and offsets.

    Options are (bits, signed, axis, grad_factor, out_dtype).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scales, offsets, scale_units, scale_floors, reference, options):
        bits, signed, axis, _, out_dtype = options
        rows = _rows(x, scales, offsets, scale_units, scale_floors, axis)
        folded = _fold(x, *rows, reference, bits, signed, axis)
        return folded, *_forward(x, *rows, folded, bits, signed, axis, out_dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *x_and_parameters, _, ctx.options = inputs
        ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(*x_and_parameters, output[0])

    @staticmethod
    @torch.no_grad()
    def outputs_again(ctx):
        bits, signed, axis, _, out_dtype = ctx.options
        x, *parameters, folded = ctx.saved_tensors
        rows = _rows(x, *parameters, axis)
        return folded, *_forward(x, *rows, folded, bits, signed, axis, out_dtype)

    @staticmethod
    def backward(ctx, _, *grads):
        inputs = (*ctx.saved_tensors, ctx.options)
        if torch.compiler.is_compiling():  # Dynamo takes no *grads in a nested Function, and no double backward either
            grad_x, grad_scales, grad_offsets = _gradients(grads, *inputs)
        else:
            grad_x, grad_scales, grad_offsets = apply(FakeQuantizeCorrectedBackward, *inputs, *grads)
        return grad_x, grad_scales, None if inputs[2] is None else grad_offsets, *[None] * 4


def fake_quantize_corrected(x, scale, offset=None, *, reference=None, bits, signed=True, axis=None, correct_axis=0,
                            grad_factor=None, out_dtype=None, scale_unit=None, scale_floor=None):
    """Fake-quantize x and give every channel the mean and the deviation of the same channel of `reference`.

    x_hat = fake_quantize(x, scale, offset, bits=bits, ...);  y = factor * (x_hat - mean(x_hat)) + mean(reference),
    factor = sd(reference) / (sd(x_hat) + 1e-8), unbiased, per channel of `correct_axis`; 0 where all codes are equal
    It is computed folded, y = code * scale' + offset' with fold_correction's scale' and offset': what a store of the
    codes with those two gives back is y, bit for bit. One read of x gives the statistics of all bit-widths (sums of
    codes are exact), a second one the results.

    Args:
        x: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - what to quantize.
        scale, offset, signed, grad_factor, out_dtype: as in fake_quantize; with several bit-widths as in
            fake_quantize_multi.
        reference: x's shape, floating point (float64 exactly when x is) - whose statistics are kept [default x].
        bits: an integer in 1..8, or a sequence of up to 8 of them.
        axis: the axis with a scale per channel; None or correct_axis.
        correct_axis: the axis whose channels are corrected; None: all of x is one channel.
        scale_unit, scale_floor: like scale, constants, as in fake_quantize (scale_units and scale_floors as in
            fake_quantize_multi): scale stands for max(scale * scale_unit, scale_floor) in all of the above.

    Returns:
        y, or a tuple of them when `bits` is a sequence: x's shape, the strides of torch.empty_like(x), `out_dtype`.
        NaN makes its channel NaN, and an infinity in the reference (so in x, if that is the reference) does.

    Gradient: the statistics are constants. x, scale and offset get what fake_quantize gives them for factor * grad, all
    bit-widths in one pass; reference gets none. A channel with factor 0 gets 0.

    Raises:
        TypeError, ValueError, RuntimeError: as fake_quantize; ValueError where axis is neither None nor correct_axis.

    Equivalent to:
        correct_weight_bias(fake_quantize(x, scale, offset, bits=bits), reference, axis=correct_axis)

    Reference: Kim et al., "EMQNet", 2025, arXiv 2510.20673, weight bias correction; Banner et al., 2019, arXiv
    1810.05723, eq. 12-13; Esser et al., 2020, arXiv 1902.08153, for the quantizer.
    """
    check.check_factor(NAME, grad_factor)
    widths, parameters, channel_axis = _checked(x, scale, offset, scale_unit, scale_floor, reference, bits, signed,
                                                axis, correct_axis)
    check.check_out_dtype(NAME, x, out_dtype)
    options = (widths, signed, channel_axis, grad_factor, out_dtype)
    _, *outs = apply(FakeQuantizeCorrected, x, *parameters, reference, options)
    return outs[0] if isinstance(bits, (int, torch.SymInt)) else tuple(outs)


def fold_correction(x, scale, offset=None, *, reference=None, bits, signed=True, axis=None, correct_axis=0,
                    scale_unit=None, scale_floor=None):
    """Return the scale and offset with which a store of x's codes gives back fake_quantize_corrected(x, ...).

    It does so bit for bit. scale' = factor * scale, offset' = mean(reference) - scale' * mean(code); where all codes of
    a channel are one value, scale' stays scale. scale' is 0 only where a channel of the reference is constant and its
    codes are not. scale is max(scale * scale_unit, scale_floor) throughout.

    Args: as fake_quantize_corrected.

    Returns:
        (scale', offset'): (C,) each, float32 (float64 for float64 x), C channels of correct_axis (1 if None); (K, C)
        each when `bits` is a sequence. For integer inference: y @ x = scale' * (code @ x) + offset' * sum(x).

    Gradient: none. Raises: as fake_quantize_corrected.
    """
    widths, parameters, channel_axis = _checked(x, scale, offset, scale_unit, scale_floor, reference, bits, signed,
                                                axis, correct_axis)
    with torch.no_grad():
        folded = _fold(x, *_rows(x, *parameters, channel_axis), reference, widths, signed, channel_axis)
    _, scales, offsets = folded.unbind()
    return (scales[0], offsets[0]) if isinstance(bits, (int, torch.SymInt)) else (scales, offsets)


def _checked(x, scale, offset, scale_unit, scale_floor, reference, bits, signed, axis, correct_axis):
    """Return (bit-widths, (scales, offsets, units, floors), channel axis): all parameters in rows."""
    check.check_x(NAME, x)
    single = isinstance(bits, (int, torch.SymInt))
    if single:
        check.check_bits(NAME, bits)
    widths = [bits] if single else check.check_bit_widths(NAME, bits)
    check.check_flag(NAME, "signed", signed)
    axis = check.check_axis(NAME, x, axis)
    correct_axis = check.check_axis(NAME, x, correct_axis, argument="correct_axis")
    if axis is not None and axis != correct_axis:
        raise ValueError(f"{NAME}: axis must be None or correct_axis, {correct_axis}, got {axis}")
    if reference is not None:
        check.check_x(NAME, reference, "reference")
        check.check_pair(NAME, ("x", "reference"), x, reference)
        check.check_same_arithmetic(NAME, ("x", "reference"), x, reference)
    rows = _parameters(x, "scale", scale, axis, widths, single)
    shifts, units, floors = (_beside(rows, x, name, given, axis, widths, single) for name, given in (
        ("offset", offset), ("scale_unit", scale_unit), ("scale_floor", scale_floor)))
    return widths, (rows, shifts, units, floors), correct_axis


def _beside(rows, x, name, given, axis, widths, single):
    """Return what _parameters does, in the shape of the scales' rows; of those that are constants, such."""
    if given is None:
        return None
    given = _parameters(x, name, given, axis, widths, single)
    check.check_pair(NAME, ("scale", name), rows, given)
    return given if name == "offset" else check.constant(given)


def _parameters(x, name, given, axis, widths, single):
    """Return (K, C) or (K, 1): one row per bit-width, in the dtype of the arithmetic."""
    if single:
        return check.check_parameter(NAME, name, filled(given, x), x, axis).reshape(1, -1)
    return check.check_stacked(NAME, f"{name}s", given, x, axis, len(widths))
