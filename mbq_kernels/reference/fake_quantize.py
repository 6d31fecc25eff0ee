"""fake_quantize in plain PyTorch."""

import torch

from . import quant_math as qm
from ._channels import channel_size, channel_sum, check_scale, per_channel, widen


@torch.no_grad()
def fake_quantize_forward(x, scale, offset, scale_unit, scale_floor, bits, signed, axis, out_dtype):
    scale = check_scale("fake_quantize", scale, scale_unit, scale_floor)
    scale_, offset_ = per_channel(scale, x, axis), 0 if offset is None else per_channel(offset, x, axis)
    code = qm.encode(qm.scaled(widen(x), scale_, offset_), *qm.bounds(bits, signed))
    return torch.empty_like(x, dtype=out_dtype or x.dtype).copy_(qm.decode(code, scale_, offset_))


@torch.no_grad()
def fake_quantize_backward(grad, x, scale, offset, scale_unit, scale_floor, bits, signed, axis, grad_factor):
    scale = check_scale("fake_quantize", scale, scale_unit, scale_floor)
    lo, hi = qm.bounds(bits, signed)
    scale_, offset_ = per_channel(scale, x, axis), 0 if offset is None else per_channel(offset, x, axis)
    v = qm.scaled(widen(x), scale_, offset_)
    grad_x, to_scale, to_offset = qm.gradient_terms(widen(grad), v, qm.encode(v, lo, hi), lo, hi)
    factor = qm.default_grad_factor(channel_size(x, axis), hi) if grad_factor is None else grad_factor
    grad_offset = scale.new_empty(0) if offset is None else channel_sum(to_offset, offset, axis, factor)
    return torch.empty_like(x).copy_(grad_x), channel_sum(to_scale, scale, axis, factor, scale_unit), grad_offset
