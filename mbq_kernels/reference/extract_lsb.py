"""extract_lsb in plain PyTorch."""

import torch

from ._lsb import position, residual


@torch.no_grad()
def extract_lsb_forward(x, limit, bits, k, axis, sign_magnitude):
    lsbs = residual(position("extract_lsb", x, limit, axis, sign_magnitude), bits, k)
    return torch.empty_like(x, dtype=torch.int8).copy_(lsbs)
