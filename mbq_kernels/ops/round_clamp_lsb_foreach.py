"""round_clamp_lsb_foreach: round_clamp_lsb of every layer of a network, each at its own bit-width, in one call."""

import torch

from .. import _checks as check
from .._library import define
from ._function import BackwardFunction, apply, needs_gradient

NAME = "round_clamp_lsb_foreach"


def _forward_shape(xs, limits, bits, k, axes, sign_magnitude):
    dtype = check.arithmetic_dtype(xs[0])
    return [torch.empty_like(x) for x in xs], *(xs[0].new_empty(len(xs), dtype=dtype) for _ in range(2))


def _backward_shape(grads, grad_penalties, xs, limits, bits, k, axes, sign_magnitude, unit_gradient):
    return [torch.empty_like(x) for x in xs]


# No limits: every x is u itself. An axis of -1: one limit for all of x.
_forward = define(NAME, "round_clamp_lsb_foreach_forward",
                  "(Tensor[] xs, Tensor[] limits, SymInt[] bits, SymInt[] k, int[] axes, bool sign_magnitude) "
                  "-> (Tensor[], Tensor, Tensor)", _forward_shape)
_backward = define(NAME, "round_clamp_lsb_foreach_backward",
                   "(Tensor[] grads, Tensor grad_penalties, Tensor[] xs, Tensor[] limits, SymInt[] bits, SymInt[] k, "
                   "int[] axes, bool sign_magnitude, bool unit_gradient) -> Tensor[]", _backward_shape)


def _gradients(options, grad_penalties, tensors):
    """Return gradients of all xs; `tensors` are the upstream ones, xs and limits."""
    count = len(options[0])
    return _backward(tensors[:count], grad_penalties, tensors[count:2 * count], tensors[2 * count:], *options)


class RoundClampLsbForeachBackward(BackwardFunction):
    @staticmethod
    def forward(options, grad_penalties, *tensors):
        return tuple(_gradients(options, grad_penalties, list(tensors)))


class RoundClampLsbForeach(torch.autograd.Function):
    """Options are (bits, k, axes, sign_magnitude, unit_gradient)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(options, *tensors):
        bits, k, axes, sign_magnitude, _ = options
        count = len(bits)
        values, penalties, rates = _forward(list(tensors[:count]), list(tensors[count:]), bits, k, axes, sign_magnitude)
        return penalties, rates, *values

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.options, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, grad_penalties, grad_rates, *grads):
        tensors = (*grads, *ctx.saved_tensors)
        if torch.compiler.is_compiling():  # Dynamo takes neither *tensors in a nested Function nor a double backward
            grad_xs = _gradients(ctx.options, grad_penalties, list(tensors))
        else:
            grad_xs = apply(RoundClampLsbForeachBackward, ctx.options, grad_penalties, *tensors)
        return None, *grad_xs, *[None] * (len(tensors) - 2 * len(grads))


def round_clamp_lsb_foreach(xs, *, bits, k=1, limits=None, axis=None, form="offset", unit_gradient=False):
    """Return round_clamp_lsb of T tensors, each with its own bits and k, in one call: one launch forward, one backward.

    values[t], penalties[t], rates[t] = round_clamp_lsb(xs[t], bits=bits[t], k=k[t], limit=limits[t], ...), the same
    bits. For the weights of a network, where a call per layer takes longer than its arithmetic. On CPU threads share
    the elements of all tensors; on CUDA a launch takes some 200 tensors, and a second one adds up; Triton launches once
    per tensor.

    Args:
        xs: T tensors of any shapes and strides, of one dtype and device - as in round_clamp.
        bits: an integer for all, or T of them - 2..8; k: likewise - 1..3, each less than its bits.
        limits: T tensors, each as round_clamp takes it; None: xs are u. torch._foreach_norm(xs, ord=inf) gives all.
        axis: as in round_clamp, the same for all tensors; a negative one counts from the end of each.
        form: as in round_clamp, unit_gradient: as in lsb_penalty, the same for all.

    Returns:
        (values, penalties, rates): a list of T tensors like xs, and two tensors of (T,), float32 (float64 for float64
        xs); sum(penalties) is MSQ's regulariser, and one read tells the rates of all layers.

    Gradient: as T calls of round_clamp_lsb.

    Raises:
        TypeError, ValueError, RuntimeError: as round_clamp_lsb, and where T, the dtypes or the devices differ.

    Equivalent to:
        rows = [round_clamp_lsb(x, bits=b, k=k, limit=m, ...) for x, b, k, m in zip(xs, bits, ks, limits)]
        [v for v, _, _ in rows], torch.stack([p for _, p, _ in rows]), torch.stack([r for _, _, r in rows])

    Reference: Han et al., 2025, arXiv 2507.22349.
    """
    xs = check.check_entries(NAME, "xs", xs)
    for t, x in enumerate(xs):
        check.check_like_first(NAME, t, x, xs[0])
    bits, k = (_each(name, given, len(xs)) for name, given in (("bits", bits), ("k", k)))
    for b, k_ in zip(bits, k, strict=True):
        check.check_lsbs(NAME, b, k_)
    sign_magnitude = check.check_form(NAME, form)
    check.check_flag(NAME, "unit_gradient", unit_gradient)
    if not xs:
        raise ValueError(f"{NAME}: xs must have a tensor at least, got none")
    given = [None] * len(xs) if limits is None else check.check_entries(NAME, "limits", limits, len(xs))
    rows = [_limit(t, limit, limits, x, axis) for t, (limit, x) in enumerate(zip(given, xs, strict=True))]
    axes = [-1 if axis is None else axis for _, axis in rows]
    constants = [] if limits is None else [limit for limit, _ in rows]
    return _call(bits, k, axes, sign_magnitude, unit_gradient, xs, constants)


def _call(bits, k, axes, sign_magnitude, unit_gradient, xs, limits):
    if torch.compiler.is_compiling() and not needs_gradient(xs):  # Dynamo then counts arguments, and *tensors as one
        values, penalties, rates = _forward(xs, limits, bits, k, axes, sign_magnitude)
    else:
        options = (bits, k, axes, sign_magnitude, unit_gradient)
        penalties, rates, *values = apply(RoundClampLsbForeach, options, *xs, *limits)
    return list(values), penalties, rates


def _limit(t, limit, limits, x, axis):
    if limit is None and limits is not None:
        raise TypeError(f"{NAME}: limits[{t}] must be a tensor, got NoneType")
    return check.check_limit(NAME, limit, x, axis, f"limits[{t}]")


def _each(name, given, count) -> list:
    """Return `given` for every tensor."""
    if isinstance(given, (int, torch.SymInt)):
        return [given] * count
    if not hasattr(given, "__iter__"):
        raise TypeError(f"{NAME}: {name} must be an integer or a sequence of integers, got {given!r}")
    given = list(given)
    if len(given) != count:
        raise ValueError(f"{NAME}: {name} must have one entry per tensor ({count}), got {len(given)}")
    return given
