"""lsb_penalty in plain PyTorch."""

import torch

from ._lsb import counts, gradient, position


@torch.no_grad()
def lsb_penalty_forward(x, limit, bits, k, axis, sign_magnitude):
    return counts(x, position("lsb_penalty", x, limit, axis, sign_magnitude), bits, k)


@torch.no_grad()
def lsb_penalty_backward(grad, x, limit, bits, k, axis, sign_magnitude, unit_gradient):
    return gradient(0, grad, x, limit, bits, k, axis, sign_magnitude, unit_gradient)
