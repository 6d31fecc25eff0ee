"""fake_quantize_affine in plain PyTorch."""

import torch

from . import quant_math as qm
from ._channels import channel_sum, check_scale, per_channel, widen


def _check(scale, zero_point):
    check_scale("fake_quantize_affine", scale)
    if zero_point.device.type == "cpu" and zero_point.isnan().any():
        index = int(zero_point.isnan().flatten().nonzero()[0])
        raise RuntimeError(f"fake_quantize_affine: zero_point must not be NaN (element {index})")


@torch.no_grad()
def fake_quantize_affine_forward(x, scale, zero_point, quant_min, quant_max, axis):
    _check(scale, zero_point)
    scale_ = per_channel(scale, x, axis)
    zp = qm.affine_zero_point(per_channel(zero_point, x, axis), quant_min, quant_max)
    _, kept = qm.affine_encode(widen(x), 1 / scale_, zp, quant_min, quant_max)
    return torch.empty_like(x).copy_(qm.affine_decode(kept, scale_))


@torch.no_grad()
def fake_quantize_affine_backward(grad, x, scale, zero_point, quant_min, quant_max, axis, grad_factor):
    _check(scale, zero_point)
    scale_ = per_channel(scale, x, axis)
    zp = qm.affine_zero_point(per_channel(zero_point, x, axis), quant_min, quant_max)
    grad_x, to_scale, to_zero_point = qm.affine_gradient_terms(widen(grad), widen(x), scale_, zp, quant_min, quant_max)
    return (torch.empty_like(x).copy_(grad_x), channel_sum(to_scale, scale, axis, grad_factor),
            channel_sum(to_zero_point, zero_point, axis, grad_factor))
