"""to_planes and from_planes in plain PyTorch."""

import torch

from . import code_math as cm
from . import quant_math as qm
from ._codes import codes_in_range


@torch.no_grad()
def to_planes_forward(codes, bits):
    fields = cm.to_fields(codes_in_range("to_planes", codes, bits, True), bits, True)
    return torch.stack([cm.gather_fields((fields >> bit) & 1, 1) for bit in reversed(range(bits))]).to(torch.uint8)


@torch.no_grad()
def from_planes_forward(planes, high_bits, bits, half_even, shape):
    count = high_bits if half_even else min(bits + 1, high_bits)
    fields = sum(cm.spread_fields(plane.int(), 1)[..., :shape[-1]] << (count - 1 - p)
                 for p, plane in enumerate(planes[:count]))
    code = cm.from_fields(fields, count, True)
    return qm.switch_code(code, qm.switching(count, bits, half_even)).to(torch.int8).contiguous()
