"""switch_bits in plain PyTorch."""

import torch

from . import quant_math as qm
from ._codes import codes_in_range


@torch.no_grad()
def switch_bits_forward(codes, from_bits, to_bits, half_even):
    wide = codes_in_range("switch_bits", codes, from_bits, True)
    return torch.empty_like(codes).copy_(qm.switch_code(wide, qm.switching(from_bits, to_bits, half_even)))
