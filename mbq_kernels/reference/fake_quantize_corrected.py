"""fake_quantize_corrected in plain PyTorch."""

import torch

from . import quant_math as qm
from ._channels import check_scale, per_channel, widen
from ._correction import fold, moments
from .fake_quantize import fake_quantize_backward
from .fake_quantize_multi import levels_of

NAME = "fake_quantize_corrected"


def _code(x, scale, offset, bits, signed, axis):
    offset_ = 0 if offset is None else per_channel(offset, x, axis)
    return qm.encode(qm.scaled(widen(x), per_channel(scale, x, axis), offset_), *qm.bounds(bits, signed))


@torch.no_grad()
def fake_quantize_corrected_fold(x, scales, offsets, scale_units, scale_floors, reference, bits, signed, axis):
    scales = check_scale(NAME, scales, scale_units, scale_floors)
    kept = moments(x if reference is None else reference, axis)
    return torch.stack([fold(moments(_code(x, scale, offset, b, signed, axis), axis), kept, scale)
                        for scale, offset, b in levels_of(bits, scales, offsets)], 1)


@torch.no_grad()
def fake_quantize_corrected_forward(x, scales, offsets, scale_units, scale_floors, folded, bits, signed, axis,
                                    out_dtype):
    scales = check_scale(NAME, scales, scale_units, scale_floors)
    outs = []
    for k, (scale, offset, b) in enumerate(levels_of(bits, scales, offsets)):
        _, new_scale, new_offset = (per_channel(row, x, axis) for row in folded[:, k])
        value = qm.decode(_code(x, scale, offset, b, signed, axis), new_scale, new_offset)
        outs.append(torch.empty_like(x, dtype=out_dtype or x.dtype).copy_(value))
    return outs


@torch.no_grad()
def fake_quantize_corrected_backward(grads, x, scales, offsets, scale_units, scale_floors, folded, bits, signed, axis,
                                     grad_factor):
    check_scale(NAME, scales, scale_units, scale_floors)
    wide = widen(x)
    total, grad_scales, grad_offsets = torch.zeros_like(wide), [], []
    for k, (*parameters, b) in enumerate(levels_of(bits, scales, offsets, scale_units, scale_floors)):
        grad = widen(grads[k]) * per_channel(folded[0, k], x, axis)
        grad_x, grad_scale, grad_offset = fake_quantize_backward(grad, wide, *parameters, b, signed, axis, grad_factor)
        total += grad_x
        grad_scales.append(grad_scale)
        grad_offsets.append(grad_offset)
    grad_offsets = scales.new_empty(0) if offsets is None else torch.stack(grad_offsets)
    return torch.empty_like(x).copy_(total), torch.stack(grad_scales), grad_offsets
