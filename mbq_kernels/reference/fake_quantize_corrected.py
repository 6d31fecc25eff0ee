"""fake_quantize_corrected in plain PyTorch."""

import torch

from . import quant_math as qm
from ._channels import effective, per_channel, widen
from ._correction import fold, moments
from .fake_quantize import fake_quantize_backward

NAME = "fake_quantize_corrected"


def _code(x, scale, offset, bits, signed, axis):
    offset_ = 0 if offset is None else per_channel(offset, x, axis)
    return qm.encode(qm.scaled(widen(x), per_channel(scale, x, axis), offset_), *qm.bounds(bits, signed))


def _levels(scales, offsets, bits):
    return zip(scales, [None] * len(bits) if offsets is None else offsets, bits, strict=True)


@torch.no_grad()
def fake_quantize_corrected_fold(x, scales, offsets, scale_floors, reference, bits, signed, axis):
    scales = effective(NAME, scales, scale_floors)
    kept = moments(x if reference is None else reference, axis)
    return torch.stack([fold(moments(_code(x, scale, offset, b, signed, axis), axis), kept, scale)
                        for scale, offset, b in _levels(scales, offsets, bits)], 1)


@torch.no_grad()
def fake_quantize_corrected_forward(x, scales, offsets, scale_floors, folded, bits, signed, axis, out_dtype):
    scales = effective(NAME, scales, scale_floors)
    outs = []
    for k, (scale, offset, b) in enumerate(_levels(scales, offsets, bits)):
        _, new_scale, new_offset = (per_channel(row, x, axis) for row in folded[:, k])
        value = qm.decode(_code(x, scale, offset, b, signed, axis), new_scale, new_offset)
        outs.append(torch.empty_like(x, dtype=out_dtype or x.dtype).copy_(value))
    return outs


@torch.no_grad()
def fake_quantize_corrected_backward(grads, x, scales, offsets, scale_floors, folded, bits, signed, axis, grad_factor):
    scales = effective(NAME, scales, scale_floors)
    wide = widen(x)
    total, grad_scales, grad_offsets = torch.zeros_like(wide), [], []
    for k, (scale, offset, b) in enumerate(_levels(scales, offsets, bits)):
        grad = widen(grads[k]) * per_channel(folded[0, k], x, axis)
        grad_x, grad_scale, grad_offset = fake_quantize_backward(grad, wide, scale, offset, None, b, signed, axis,
                                                                 grad_factor)
        total += grad_x
        grad_scales.append(grad_scale)
        grad_offsets.append(grad_offset)
    grad_offsets = scales.new_empty(0) if offsets is None else torch.stack(grad_offsets)
    return torch.empty_like(x).copy_(total), torch.stack(grad_scales), grad_offsets
