"""round_clamp_lsb_foreach in plain PyTorch: round_clamp_lsb tensor after tensor."""

import torch

from ._channels import widen
from ._lsb import counts, gradient, position, value


def rows(xs, limits, bits, k, axes, sign_magnitude):
    """Return (x, limit, bits, k, axis, sign_magnitude) of every tensor"""
    limits = limits or [None] * len(xs)
    axes = [None if axis < 0 else axis for axis in axes]
    return zip(xs, limits, bits, k, axes, [sign_magnitude] * len(axes), strict=True)


@torch.no_grad()
def round_clamp_lsb_foreach_forward(xs, limits, bits, k, axes, sign_magnitude):
    values, found = [], []
    for t, (x, limit, b, k_, axis, _) in enumerate(rows(xs, limits, bits, k, axes, sign_magnitude)):
        u = position("round_clamp_lsb_foreach", x, limit, axis, sign_magnitude, f", tensor {t}")
        values.append(value(x, u, limit, b, axis, sign_magnitude))
        found.append(counts(x, u, b, k_))
    penalties, rates = zip(*found, strict=True)
    return values, torch.stack(penalties), torch.stack(rates)


@torch.no_grad()
def round_clamp_lsb_foreach_backward(grads, grad_penalties, xs, limits, bits, k, axes, sign_magnitude, unit_gradient):
    each = rows(xs, limits, bits, k, axes, sign_magnitude)
    return [gradient(widen(grad), grad_penalty, *row, unit_gradient)
            for grad, grad_penalty, row in zip(grads, grad_penalties, each, strict=True)]
