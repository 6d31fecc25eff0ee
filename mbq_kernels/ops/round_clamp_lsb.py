"""round_clamp_lsb: quantized weight, penalty and rate of MSQ from one read, one fused backward."""

import torch

from .. import _checks as check
from .._library import define
from ._function import BackwardFunction, apply

NAME = "round_clamp_lsb"


def _forward_shape(x, limit, bits, k, axis, sign_magnitude):
    return torch.empty_like(x), *(x.new_empty((), dtype=check.arithmetic_dtype(x)) for _ in range(2))


def _backward_shape(grad, grad_penalty, x, limit, bits, k, axis, sign_magnitude, unit_gradient):
    return torch.empty_like(x)


_forward = define(NAME, "round_clamp_lsb_forward",
                  "(Tensor x, Tensor? limit, SymInt bits, SymInt k, int? axis, bool sign_magnitude) "
                  "-> (Tensor, Tensor, Tensor)", _forward_shape)
_backward = define(NAME, "round_clamp_lsb_backward",
                   "(Tensor grad, Tensor grad_penalty, Tensor x, Tensor? limit, SymInt bits, SymInt k, int? axis, "
                   "bool sign_magnitude, bool unit_gradient) -> Tensor", _backward_shape)


class RoundClampLsbBackward(BackwardFunction):
    @staticmethod
    def forward(grad, grad_penalty, x, limit, options):
        return _backward(grad, grad_penalty, x, limit, *options)


class RoundClampLsb(torch.autograd.Function):
    """Options are (bits, k, axis, sign_magnitude, unit_gradient)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, limit, options):
        bits, k, axis, sign_magnitude, _ = options
        return _forward(x, limit, bits, k, axis, sign_magnitude)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, limit, ctx.options = inputs
        ctx.save_for_backward(x, limit)
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx, grad, grad_penalty, grad_rate):
        return apply(RoundClampLsbBackward, grad, grad_penalty, *ctx.saved_tensors, ctx.options), None, None


def round_clamp_lsb(x, *, bits, k=1, limit=None, axis=None, form="offset", unit_gradient=False):
    """Return round_clamp and lsb_penalty of x from one read, with one backward that adds their gradients.

    Args:
        x, limit, axis, form: as in round_clamp.
        bits, k, unit_gradient: as in lsb_penalty.

    Returns:
        (value, penalty, rate): what round_clamp and lsb_penalty return, the same bits.

    Gradient: x gets grad_value + grad_penalty * 2^bits * sign(B) * du/dx as in lsb_penalty, added in the dtype of the
    arithmetic (float32; float64 for float64 x) and rounded once. limit and rate have none. x and limit are all that is
    saved.

    Raises:
        As lsb_penalty.

    Equivalent to:
        (round_clamp(x, bits=bits, limit=limit, form=form), *lsb_penalty(x, bits=bits, k=k, limit=limit, form=form))

    Reference: Han et al., 2025, arXiv 2507.22349.
    """
    check.check_x(NAME, x)
    check.check_lsbs(NAME, bits, k)
    sign_magnitude = check.check_form(NAME, form)
    check.check_flag(NAME, "unit_gradient", unit_gradient)
    limit, axis = check.check_limit(NAME, limit, x, axis)
    return apply(RoundClampLsb, x, limit, (bits, k, axis, sign_magnitude, unit_gradient))
