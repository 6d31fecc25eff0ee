"""round_clamp_lsb_foreach in plain PyTorch: round_clamp_lsb tensor after tensor."""

import torch

from ._channels import widen
from ._lsb import counts, gradient, position, value


def rows(xs, limits, bits, k, axes):
    """(x, limit, bits, k, axis) of every tensor"""
    limits = limits or [None] * len(xs)
    return zip(xs, limits, bits, k, (None if axis < 0 else axis for axis in axes), strict=True)


@torch.no_grad()
def round_clamp_lsb_foreach_forward(xs, limits, bits, k, axes):
    values, found = [], []
    for t, (x, limit, b, k_, axis) in enumerate(rows(xs, limits, bits, k, axes)):
        u = position("round_clamp_lsb_foreach", x, limit, axis, f", tensor {t}")
        values.append(value(x, u, limit, b, axis))
        found.append(counts(x, u, b, k_))
    penalties, rates = zip(*found, strict=True)
    return values, torch.stack(penalties), torch.stack(rates)


@torch.no_grad()
def round_clamp_lsb_foreach_backward(grads, grad_penalties, xs, limits, bits, k, axes, unit_gradient):
    return [gradient(widen(grad), grad_penalty, *row, unit_gradient)
            for grad, grad_penalty, row in zip(grads, grad_penalties, rows(xs, limits, bits, k, axes), strict=True)]
