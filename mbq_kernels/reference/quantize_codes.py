"""quantize_codes in plain PyTorch."""

import torch

from . import quant_math as qm
from ._channels import check_scale, per_channel, widen
from ._codes import codes_dtype


@torch.no_grad()
def quantize_codes_forward(x, scale, offset, bits, signed, axis):
    _check("quantize_codes", x, scale, offset)
    lo, hi = qm.bounds(bits, signed)
    offset_ = 0 if offset is None else per_channel(offset, x, axis)
    code = qm.encode(qm.scaled(widen(x), per_channel(scale, x, axis), offset_), lo, hi)
    return torch.empty_like(x, dtype=codes_dtype(signed)).copy_(torch.where(code == code, code, lo))


def _check(op, x, scale, offset):
    check_scale(op, scale)
    if x.device.type != "cpu":
        return
    if offset is not None and not offset.isfinite().all():
        index = int((~offset.isfinite()).flatten().nonzero()[0])
        raise RuntimeError(f"{op}: offset must be finite, got {offset.flatten()[index]:g} (element {index})")
    if x.isnan().any():
        raise RuntimeError(f"{op}: x must not hold NaN, which no code stands for")
