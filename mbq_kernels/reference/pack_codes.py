"""pack_codes and unpack_codes in plain PyTorch."""

import torch

from . import code_math as cm
from ._codes import codes_dtype, codes_in_range


@torch.no_grad()
def pack_codes_forward(codes, bits, signed):
    fields = cm.to_fields(codes_in_range("pack_codes", codes, bits, signed), bits, signed)
    return cm.gather_fields(fields, bits).to(torch.uint8)


@torch.no_grad()
def unpack_codes_forward(packed, bits, signed, shape):
    fields = cm.spread_fields(packed.int(), bits)[..., :shape[-1]]
    return cm.from_fields(fields, bits, signed).to(codes_dtype(signed)).contiguous()
