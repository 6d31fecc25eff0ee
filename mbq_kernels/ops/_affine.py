"""The raw operators and the autograd Function of the affine arithmetic, for fake_quantize_affine and for the narrow
range of fake_quantize."""

import torch

from .._library import define
from ._function import BackwardFunction, apply

NAME = "fake_quantize_affine"
_LIMIT = 2**20  # rounding adds 1.5 * 2^23, exact while codes, zero points and their differences stay under 2^22


def _forward_shape(x, scale, zero_point, quant_min, quant_max, axis, form=0):
    return torch.empty_like(x)


def _backward_shape(grad, x, scale, zero_point, quant_min, quant_max, axis, grad_factor, form=0):
    return (torch.empty_like(x), scale.new_empty(scale.shape),
            zero_point.new_empty(zero_point.shape, dtype=scale.dtype))


# An integer zero point has dtype int32, and all else the dtype of the arithmetic; form: affine_form's bits.
_forward = define(NAME, "fake_quantize_affine_forward",
                  "(Tensor x, Tensor scale, Tensor zero_point, SymInt quant_min, SymInt quant_max, int? axis, "
                  "int form=0) -> Tensor", _forward_shape)
_backward = define(NAME, "fake_quantize_affine_backward",
                   "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, SymInt quant_min, SymInt quant_max, "
                   "int? axis, float grad_factor, int form=0) -> (Tensor, Tensor, Tensor)", _backward_shape)


def affine_form(*, divide=False, before=False, after=False, by_position=False, through=False, product=False) -> int:
    """Return the bits that the raw operators take: AffineForm of csrc/math/affine_math.h, the first member lowest."""
    return sum(flag << place for place, flag in enumerate((divide, before, after, by_position, through, product)))


class FakeQuantizeAffineBackward(BackwardFunction):
    @staticmethod
    def forward(grad, x, scale, zero_point, options):
        quant_min, quant_max, axis, grad_factor, form = options
        return _backward(grad, x, scale, zero_point, quant_min, quant_max, axis, grad_factor, form)


class FakeQuantizeAffine(torch.autograd.Function):
    """Options are (quant_min, quant_max, axis, grad_factor, form). An integer zero point is a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale, zero_point, options):
        quant_min, quant_max, axis, _, form = options
        return _forward(x, scale, zero_point, quant_min, quant_max, axis, form)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:-1])
        ctx.options = inputs[-1]

    @staticmethod
    def backward(ctx, grad):
        x, scale, zero_point = ctx.saved_tensors
        grads = apply(FakeQuantizeAffineBackward, grad, x, scale, zero_point, ctx.options)
        return *(grads if zero_point.is_floating_point() else (*grads[:2], None)), None


def check_range(op: str, quant_min, quant_max) -> None:
    for name, value in (("quant_min", quant_min), ("quant_max", quant_max)):
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"{op}: {name} must be an integer, got {value!r}")
        if value < -_LIMIT or value > _LIMIT:
            raise ValueError(f"{op}: {name} must be between -2^20 and 2^20, got {value}")
    if quant_min >= quant_max:
        raise ValueError(f"{op}: quant_min must be less than quant_max, got {quant_min} and {quant_max}")
