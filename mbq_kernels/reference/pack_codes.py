"""pack_codes and unpack_codes in plain PyTorch."""

import torch

from . import quant_math as qm
from ._codes import codes_dtype, codes_in_range


@torch.no_grad()
def pack_codes_forward(codes, bits, signed):
    fields = qm.to_fields(codes_in_range("pack_codes", codes, bits, signed), bits, signed)
    return qm.gather_fields(fields, bits).to(torch.uint8)


@torch.no_grad()
def unpack_codes_forward(packed, bits, signed, shape):
    fields = qm.spread_fields(packed.int(), bits)[..., :shape[-1]]
    return qm.from_fields(fields, bits, signed).to(codes_dtype(signed)).contiguous()
