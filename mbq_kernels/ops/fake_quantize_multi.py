"""fake_quantize_multi: every bit-width from one read of x, one fused backward."""

import torch

from .. import _checks as check
from .._library import define
from .._scales import factors_of, grouped
from ._function import BackwardFunction, apply

NAME = "fake_quantize_multi"


def _forward_shape(x, scales, offsets, scale_units, scale_floors, bits, signed, axis, out_dtype):
    return [torch.empty_like(x, dtype=out_dtype or x.dtype) for _ in bits]


def _backward_shape(grads, x, scales, offsets, scale_units, scale_floors, bits, signed, axis, grad_factor):
    grad_offsets = scales.new_empty(0) if offsets is None else offsets.new_empty(offsets.shape)
    return torch.empty_like(x), scales.new_empty(scales.shape), grad_offsets


_forward = define(NAME, "fake_quantize_multi_forward",
                  "(Tensor x, Tensor scales, Tensor? offsets, Tensor? scale_units, Tensor? scale_floors, "
                  "SymInt[] bits, bool signed, int? axis, ScalarType? out_dtype) -> Tensor[]", _forward_shape)
_backward = define(NAME, "fake_quantize_multi_backward",
                   "(Tensor[] grads, Tensor x, Tensor scales, Tensor? offsets, Tensor? scale_units, "
                   "Tensor? scale_floors, SymInt[] bits, bool signed, int? axis, float? grad_factor) "
                   "-> (Tensor, Tensor, Tensor)", _backward_shape)


class FakeQuantizeMultiBackward(BackwardFunction):
    @staticmethod
    def forward(x, scales, offsets, scale_units, scale_floors, options, *grads):
        bits, signed, axis, (grad_factor, share), _ = options
        found = _backward(list(grads), x, scales, offsets, scale_units, scale_floors, bits, signed, axis, grad_factor)
        return found if share is None else (found[0], found[1] * share, found[2] * share)


class FakeQuantizeMulti(torch.autograd.Function):
    """Options are (bits, signed, axis, (grad_factor, share), out_dtype)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scales, offsets, scale_units, scale_floors, options):
        bits, signed, axis, _, out_dtype = options
        return tuple(_forward(x, scales, offsets, scale_units, scale_floors, bits, signed, axis, out_dtype))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:-1])
        ctx.options = inputs[-1]

    @staticmethod
    def backward(ctx, *grads):
        inputs = (*ctx.saved_tensors, ctx.options)
        if torch.compiler.is_compiling():  # Dynamo takes no *grads in a nested Function, and no double backward either
            grad_x, grad_scales, grad_offsets = FakeQuantizeMultiBackward.forward(*inputs, *grads)
        else:
            grad_x, grad_scales, grad_offsets = apply(FakeQuantizeMultiBackward, *inputs, *grads)
        return grad_x, grad_scales, None if inputs[2] is None else grad_offsets, None, None, None


def fake_quantize_multi(x, scales, offsets=None, *, bits, signed=True, axis=None, group_size=None, grad_factor=None,
                        out_dtype=None, scale_units=None, scale_floors=None):
    """Quantize x to K bit-widths at once: x is read once forward and once backward, and saved once.

    x_hat[k] = fake_quantize(x, scales[k], offsets[k], bits=bits[k], ...), the same bits; the gradients of x are added
    in the dtype of the arithmetic (float32; float64 for float64 x) in the order of `bits` and rounded once. Saved are x
    and the stacked parameters.

    Args:
        x: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - what to quantize.
        scales: (K,), (K, C) with `axis`, or a sequence of K scales as fake_quantize takes them - steps, > 0.
        offsets: like scales - real values of code 0; None is 0.
        bits: K integers in 1..8, in any order, K <= 8.
        signed, axis, group_size, grad_factor, out_dtype: as in fake_quantize, the same for all K.
        scale_units, scale_floors: like scales - fake_quantize's scale_unit and scale_floor for each of them, constants;
            None: without. A tensor is the fast form: a sequence is stacked at every call.

    Returns:
        tuple of K tensors of x's shape, strides of torch.empty_like(x) (contiguous with group_size), `out_dtype`.

    Gradient: as K calls of fake_quantize; an output that is not used gets a zero gradient
        (which NaN in x turns into NaN for its scale).

    Raises:
        TypeError, ValueError, RuntimeError: as fake_quantize, and ValueError when K differs between the arguments.

    Equivalent to:
        tuple(fake_quantize(x, s, bits=b) for s, b in zip(scales, bits)), and so on with the other arguments

    Reference: Esser et al., 2020, arXiv 1902.08153, eq. 1-3, for every bit-width; Huang et al., 2025, arXiv
    2502.01199, alg. A.1 trains with it.
    """
    check.check_x(NAME, x)
    bits = check.check_bit_widths(NAME, bits)
    check.check_flag(NAME, "signed", signed)
    check.check_out_dtype(NAME, x, out_dtype)
    rows = x
    if group_size is not None:
        rows, (scales, offsets, scale_units, scale_floors) = grouped(
            NAME, x, group_size, axis, several=True, scales=scales, offsets=offsets, scale_units=scale_units,
            scale_floors=scale_floors)
        axis = 0
    axis = check.check_axis(NAME, rows, axis)
    scales = check.check_stacked(NAME, "scales", scales, rows, axis, len(bits))
    if offsets is not None:
        offsets = check.check_stacked(NAME, "offsets", offsets, rows, axis, len(bits))
        check.check_pair(NAME, ("scales", "offsets"), scales, offsets)
    scale_units = check.check_stacked_beside(NAME, "scale_units", scale_units, scales, rows, axis)
    scale_floors = check.check_stacked_beside(NAME, "scale_floors", scale_floors, scales, rows, axis)
    axis = None if scales.shape[1] == 1 else axis
    options = (bits, signed, axis, factors_of(NAME, grad_factor, scales.shape[1]), out_dtype)
    outs = apply(FakeQuantizeMulti, rows, scales, offsets, scale_units, scale_floors, options)
    return outs if group_size is None else tuple(out.reshape(x.shape) for out in outs)
