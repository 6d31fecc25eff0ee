"""extract_lsb in plain PyTorch."""

import torch

from . import quant_math as qm
from ._lsb import position


@torch.no_grad()
def extract_lsb_forward(x, limit, bits, k, axis):
    residual = qm.lsb_residual(position("extract_lsb", x, limit, axis), 2.0**bits, 2.0**k)
    return torch.empty_like(x, dtype=torch.int8).copy_(residual)
