"""double_round: codes of the highest bit-width rounded again to every lower one, with one learned scale for all."""

import torch

from .. import _checks as check
from .._library import define
from .._per_channel import filled
from .._scales import factors_of, grouped
from ._function import BackwardFunction, apply

NAME = "double_round"
LOWEST_BITS = 2  # at 1 bit the codes are -1 and +1: a code 0 has none


def _forward_shape(x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up, out_dtype):
    return [torch.empty_like(x, dtype=out_dtype or x.dtype) for _ in bits]


def _backward_shape(grads, x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up, grad_factor,
                    scale_chain):
    return torch.empty_like(x), scale.new_empty(scale.shape)


_forward = define(NAME, "double_round_forward",
                  "(Tensor x, Tensor scale, Tensor? scale_unit, Tensor? scale_floor, SymInt high_bits, "
                  "SymInt[] bits, int? axis, bool half_up, ScalarType? out_dtype) -> Tensor[]", _forward_shape)
_backward = define(NAME, "double_round_backward",
                   "(Tensor[] grads, Tensor x, Tensor scale, Tensor? scale_unit, Tensor? scale_floor, "
                   "SymInt high_bits, SymInt[] bits, int? axis, bool half_up, float? grad_factor, bool scale_chain) "
                   "-> (Tensor, Tensor)", _backward_shape)


class DoubleRoundBackward(BackwardFunction):
    @staticmethod
    def forward(x, scale, scale_unit, scale_floor, options, *grads):
        high_bits, bits, axis, half_up, (grad_factor, share), scale_chain, _ = options
        grad_x, grad_scale = _backward(list(grads), x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up,
                                       grad_factor, scale_chain)
        return grad_x, grad_scale if share is None else grad_scale * share


class DoubleRound(torch.autograd.Function):
    """Options are (high_bits, bits, axis, half_up, (grad_factor, share), scale_chain, out_dtype)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale, scale_unit, scale_floor, options):
        high_bits, bits, axis, half_up, _, _, out_dtype = options
        return tuple(_forward(x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up, out_dtype))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:-1])
        ctx.options = inputs[-1]

    @staticmethod
    @torch.no_grad()
    def outputs_again(ctx):
        return DoubleRound.forward(*ctx.saved_tensors, ctx.options)

    @staticmethod
    def backward(ctx, *grads):
        if torch.compiler.is_compiling():  # Dynamo takes no *grads in a nested Function, and no double backward either
            grad_x, grad_scale = DoubleRoundBackward.forward(*ctx.saved_tensors, ctx.options, *grads)
        else:
            grad_x, grad_scale = apply(DoubleRoundBackward, *ctx.saved_tensors, ctx.options, *grads)
        return grad_x, grad_scale, None, None, None


def double_round(x, scale, *, high_bits=8, bits, axis=None, group_size=None, rounding="half_even", grad_factor=None,
                 scale_chain=False, out_dtype=None, scale_unit=None, scale_floor=None):
    """Quantize x to `high_bits` bits and round the codes again to `bits` bits; several bit-widths share one read of x.

    code_h = clamp(rint(x / scale), lo_h, hi_h);  code = clamp(round(code_h / 2^D), lo, hi), D = high_bits - bits
    x_hat = (code * 2^D) * scale - which is code * (scale * 2^D), bit for bit, wherever scale * 2^D is finite.
    [lo, hi] = [-2^(bits-1), 2^(bits-1) - 1]. rint rounds half to even. +-inf is clamped, NaN stays NaN. With D = 0 this
    is fake_quantize without an offset. Whoever stores code_h and scale has every lower bit-width in store.

    Args:
        x: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - what to quantize.
        scale: one element of any shape, or with `axis` (C,) or what broadcasts along it alone, as (C, 1, 1, 1),
            floating point, or a number (a constant) - size of a step at high_bits, > 0, or with scale_floor any finite
            value. On CPU other values raise; on CUDA values are not looked at (no host synchronisation).
        high_bits: 2..8 - bit-width of the first rounding.
        bits: an integer in 2..high_bits, or a sequence of up to 8 such, in any order - may change from call to call
            without a recompile. At 1 bit a code 0 has no sign.
        axis: the axis of x that has C channels, negative counts from the end; None is one scale for all of x.
        group_size: elements of the last axis that share a scale, as in fake_quantize.
        rounding: of code_h / 2^D: 'half_even', or 'half_up' = (code_h + 2^(D-1)) >> D, which needs the top bits + 1
            bits of code_h alone.
        grad_factor: multiplies the gradient of scale [default 1 / sqrt(n hi), n elements sharing a scale]; "tensor":
            1 / sqrt(x.numel() hi), also with an axis or groups.
        scale_chain: multiply the gradient of scale by 2^D, the derivative of the step scale * 2^D [the paper's code
            does not].
        out_dtype: dtype of the result, rounded to once [default x's].
        scale_unit, scale_floor: like scale, floating point, finite and > 0, constants; None: 1, and no floor. The scale
            of x_hat and of all gradients is max(scale * scale_unit, scale_floor), its product rounded once. The
            gradient of scale is that of the maximum divided by scale_unit: scale counts in units, and a step of SGD
            moves the product as it would move a parameter that is the scale itself. A scale below the floor, or below
            0, gets its gradient too, so that it can come back.

    Returns:
        x_hat: x's shape, the strides of torch.empty_like(x) (contiguous with group_size), `out_dtype`; a tuple of them
            where bits is a sequence.

    Gradient, with v = x / (scale 2^D): x gets grad where lo <= v <= hi, else 0 (straight through, in x's dtype); scale
    gets grad_factor * sum(grad * (code - v inside | lo below | hi above)). Of several bit-widths both are added, in the
    order of `bits`: for x in the dtype of the arithmetic, for scale in float64; an output that is not used counts as
    one with a zero gradient. NaN in x gives NaN to scale alone. Sums are deterministic.
    scale_unit and scale_floor get no gradient. Saved are x, scale, scale_unit and scale_floor alone (parameters of
    another dtype than the arithmetic's as converted copies).

    Raises:
        TypeError: a dtype or type is wrong. ValueError: bits, axis, rounding, shape or device. RuntimeError: on CPU,
        scale, scale_unit, their product or scale_floor not finite and > 0 (a scale with a floor: not finite); double
        backward.

    Equivalent to (forward, half_even; scale standing for max(scale * scale_unit, scale_floor)):
        ((x / scale).round().clamp(lo_h, hi_h) / 2**D).round().clamp(lo, hi) * 2**D * scale

    Reference: Huang et al., "Nearly Lossless Adaptive Bit Switching", 2025, arXiv 2502.01199, eq. 1-3 and 13-14; the
    clamp of code_h and the half_up rounding are ours. The paper's code takes round(v) for code in the gradient of scale
    and differs from this where rounding twice differs from rounding once.
    """
    check.check_x(NAME, x)
    check.check_bits(NAME, high_bits, LOWEST_BITS, "high_bits")
    single = isinstance(bits, (int, torch.SymInt))
    widths = check.check_bit_widths(NAME, [bits] if single else bits)
    for b in widths:
        if b < LOWEST_BITS or b > high_bits:
            raise ValueError(f"{NAME}: bits must be between {LOWEST_BITS} and high_bits, {high_bits}, got {b}"
                             f"{' (at 1 bit a code 0 has no sign)' if b < LOWEST_BITS else ''}")
    check.check_choice(NAME, "rounding", rounding, ("half_even", "half_up"))
    check.check_flag(NAME, "scale_chain", scale_chain)
    check.check_out_dtype(NAME, x, out_dtype)
    rows = x
    if group_size is not None:
        rows, (scale, scale_unit, scale_floor) = grouped(NAME, x, group_size, axis, scale=scale, scale_unit=scale_unit,
                                                         scale_floor=scale_floor)
        axis = 0
    axis = check.check_axis(NAME, rows, axis)
    scale = check.check_parameter(NAME, "scale", filled(scale, rows), rows, axis)
    scale_unit = check.check_beside(NAME, "scale_unit", scale_unit, scale, rows, axis)
    scale_floor = check.check_beside(NAME, "scale_floor", scale_floor, scale, rows, axis)
    axis = None if scale.numel() == 1 else axis
    factors = factors_of(NAME, grad_factor, scale.numel())
    options = (high_bits, widths, axis, rounding == "half_up", factors, scale_chain, out_dtype)
    outs = apply(DoubleRound, rows, scale, scale_unit, scale_floor, options)
    if group_size is not None:
        outs = tuple(out.reshape(x.shape) for out in outs)
    return outs[0] if single else outs
