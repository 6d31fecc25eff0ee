"""fake_quantize_multi in plain PyTorch: fake_quantize once per bit-width, gradients of x added in their order."""

import torch

from ._channels import check_scale, widen
from .fake_quantize import fake_quantize_backward, fake_quantize_forward


def levels_of(bits, *parameters):
    """Return (its row of each of the parameters, None where there is none, and bits) for every bit-width"""
    return zip(*([None] * len(bits) if rows is None else rows for rows in parameters), bits, strict=True)


@torch.no_grad()
def fake_quantize_multi_forward(x, scales, offsets, scale_units, scale_floors, bits, signed, axis, out_dtype):
    check_scale("fake_quantize_multi", scales, scale_units, scale_floors)
    return [fake_quantize_forward(x, *parameters, b, signed, axis, out_dtype)
            for *parameters, b in levels_of(bits, scales, offsets, scale_units, scale_floors)]


@torch.no_grad()
def fake_quantize_multi_backward(grads, x, scales, offsets, scale_units, scale_floors, bits, signed, axis, grad_factor):
    check_scale("fake_quantize_multi", scales, scale_units, scale_floors)
    wide = widen(x)
    total, grad_scales, grad_offsets = torch.zeros_like(wide), [], []
    for grad, *parameters, b in levels_of(bits, grads, scales, offsets, scale_units, scale_floors):
        grad_x, grad_scale, grad_offset = fake_quantize_backward(widen(grad), wide, *parameters, b, signed, axis,
                                                                 grad_factor)
        total += grad_x
        grad_scales.append(grad_scale)
        grad_offsets.append(grad_offset)
    grad_offsets = scales.new_empty(0) if offsets is None else torch.stack(grad_offsets)
    return torch.empty_like(x).copy_(total), torch.stack(grad_scales), grad_offsets
