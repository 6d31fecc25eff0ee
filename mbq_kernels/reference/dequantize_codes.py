"""dequantize_codes in plain PyTorch."""

import torch

from . import quant_math as qm
from ._channels import check_scale, per_channel
from ._codes import codes_in_range


@torch.no_grad()
def dequantize_codes_forward(codes, scale, from_bits, to_bits, axis, dtype, half_even):
    check_scale("dequantize_codes", scale)
    wide = codes_in_range("dequantize_codes", codes, from_bits, True)
    code = qm.switch_code(wide, qm.switching(from_bits, to_bits, half_even))
    wide_code = code.float() * 2 ** (from_bits - to_bits)
    return torch.empty_like(codes, dtype=dtype).copy_(wide_code * per_channel(scale, codes, axis))
