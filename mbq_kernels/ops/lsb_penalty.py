"""lsb_penalty: MSQ's regulariser, the size of the last bits of a weight, and how many of them are in use."""

import torch

from .. import _checks as check
from .._library import define
from ._function import BackwardFunction, apply

NAME = "lsb_penalty"


def _forward_shape(x, limit, bits, k, axis, sign_magnitude):
    return tuple(x.new_empty((), dtype=check.arithmetic_dtype(x)) for _ in range(2))


def _backward_shape(grad, x, limit, bits, k, axis, sign_magnitude, unit_gradient):
    return torch.empty_like(x)


_forward = define(NAME, "lsb_penalty_forward",
                  "(Tensor x, Tensor? limit, SymInt bits, SymInt k, int? axis, bool sign_magnitude) "
                  "-> (Tensor, Tensor)", _forward_shape)
_backward = define(NAME, "lsb_penalty_backward",
                   "(Tensor grad, Tensor x, Tensor? limit, SymInt bits, SymInt k, int? axis, bool sign_magnitude, "
                   "bool unit_gradient) -> Tensor", _backward_shape)


class LsbPenaltyBackward(BackwardFunction):
    @staticmethod
    def forward(grad, x, limit, options):
        return _backward(grad, x, limit, *options)


class LsbPenalty(torch.autograd.Function):
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
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, grad, grad_rate):
        return apply(LsbPenaltyBackward, grad, *ctx.saved_tensors, ctx.options), None, None


def lsb_penalty(x, *, bits, k=1, limit=None, axis=None, form="offset", unit_gradient=False):
    """Return the sum of |B| over x and the share of elements whose B is not 0, from one read; B = extract_lsb(x, ...).

    Args:
        x, limit, axis, form: as in round_clamp. An all-zero layer, which has limit 0, has penalty, rate and gradient 0.
        bits: 2..8, k: 1..3, less than bits - may change from call to call without a recompile.
        unit_gradient: leave the factor 2^bits out of the gradient, for lambda to absorb.

    Returns:
        (penalty, rate): two 0-dim float32 tensors (float64 for float64 x), sum |B| and the mean of (B != 0); of no
        elements 0. Both are exact integers before their one rounding, so they do not depend on backend or threads.

    Gradient: x gets grad * 2^bits * sign(B) * du/dx; du/dx is 1 / (2 limit) in the offset form, sign(x) / limit in the
    sign-magnitude form, whose B is the magnitude's, and 1 without limit; the product with grad * 2^bits is rounded
    before the division. c_(bits-k) is a constant (both terms straight through would cancel), the top bin counts. limit
    and rate have none. x and limit are all that is saved.

    Raises:
        As extract_lsb, and RuntimeError for a double backward.

    Equivalent to (forward):
        B = extract_lsb(x, bits=bits, k=k, limit=limit, form=form)
        B.abs().sum().float(), (B != 0).float().mean()

    Reference: Han et al., 2025, arXiv 2507.22349.
    """
    check.check_x(NAME, x)
    check.check_lsbs(NAME, bits, k)
    sign_magnitude = check.check_form(NAME, form)
    check.check_flag(NAME, "unit_gradient", unit_gradient)
    limit, axis = check.check_limit(NAME, limit, x, axis)
    return apply(LsbPenalty, x, limit, (bits, k, axis, sign_magnitude, unit_gradient))
