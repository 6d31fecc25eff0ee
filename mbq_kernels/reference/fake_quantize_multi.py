"""fake_quantize_multi in plain PyTorch: fake_quantize once per bit-width, gradients of x added in their order."""

import torch

from ._channels import effective, widen
from .fake_quantize import fake_quantize_backward, fake_quantize_forward


def _rows(offsets, count):
    return [None] * count if offsets is None else offsets


@torch.no_grad()
def fake_quantize_multi_forward(x, scales, offsets, scale_floors, bits, signed, axis, out_dtype):
    scales = effective("fake_quantize_multi", scales, scale_floors)
    return [fake_quantize_forward(x, scale, offset, None, b, signed, axis, out_dtype)
            for scale, offset, b in zip(scales, _rows(offsets, len(bits)), bits, strict=True)]


@torch.no_grad()
def fake_quantize_multi_backward(grads, x, scales, offsets, scale_floors, bits, signed, axis, grad_factor):
    scales = effective("fake_quantize_multi", scales, scale_floors)
    wide = widen(x)
    total, grad_scales, grad_offsets = torch.zeros_like(wide), [], []
    for grad, scale, offset, b in zip(grads, scales, _rows(offsets, len(bits)), bits, strict=True):
        grad_x, grad_scale, grad_offset = fake_quantize_backward(
            widen(grad), wide, scale, offset, None, b, signed, axis, grad_factor)
        total += grad_x
        grad_scales.append(grad_scale)
        grad_offsets.append(grad_offset)
    grad_offsets = scales.new_empty(0) if offsets is None else torch.stack(grad_offsets)
    return torch.empty_like(x).copy_(total), torch.stack(grad_scales), grad_offsets
