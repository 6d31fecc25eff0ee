"""lsb_penalty in plain PyTorch."""

import torch

from ._lsb import counts, gradient, position


@torch.no_grad()
def lsb_penalty_forward(x, limit, bits, k, axis):
    return counts(x, position("lsb_penalty", x, limit, axis), bits, k)


@torch.no_grad()
def lsb_penalty_backward(grad, x, limit, bits, k, axis, unit_gradient):
    return gradient(0, grad, x, limit, bits, k, axis, unit_gradient)
