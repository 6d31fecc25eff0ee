"""round_clamp_lsb in plain PyTorch."""

import torch

from ._channels import widen
from ._lsb import counts, gradient, position, value


@torch.no_grad()
def round_clamp_lsb_forward(x, limit, bits, k, axis, sign_magnitude):
    u = position("round_clamp_lsb", x, limit, axis, sign_magnitude)
    return value(x, u, limit, bits, axis, sign_magnitude), *counts(x, u, bits, k)


@torch.no_grad()
def round_clamp_lsb_backward(grad, grad_penalty, x, limit, bits, k, axis, sign_magnitude, unit_gradient):
    return gradient(widen(grad), grad_penalty, x, limit, bits, k, axis, sign_magnitude, unit_gradient)
