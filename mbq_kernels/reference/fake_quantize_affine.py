"""fake_quantize_affine in plain PyTorch."""

import torch

from . import quant_math as qm
from ._channels import channel_sum, check_scale, per_channel, widen


def _check(scale, zero_point):
    check_scale("fake_quantize_affine", scale)
    if zero_point.device.type == "cpu" and zero_point.isnan().any():
        index = int(zero_point.isnan().flatten().nonzero()[0])
        raise RuntimeError(f"fake_quantize_affine: zero_point must not be NaN (element {index})")


def _form(form: int) -> tuple[bool, ...]:
    return tuple(bool(form >> place & 1) for place in range(6))


@torch.no_grad()
def fake_quantize_affine_forward(x, scale, zero_point, quant_min, quant_max, axis, form=0):
    _check(scale, zero_point)
    scale_, zp = per_channel(scale, x, axis), per_channel(zero_point, x, axis)
    if form:
        code = qm.general_encode(widen(x), scale_, zp, quant_min, quant_max, _form(form))
        return torch.empty_like(x).copy_(qm.general_decode(code, scale_))
    zp = qm.affine_zero_point(zp, quant_min, quant_max)
    _, kept = qm.affine_encode(widen(x), 1 / scale_, zp, quant_min, quant_max)
    return torch.empty_like(x).copy_(qm.affine_decode(kept, scale_))


@torch.no_grad()
def fake_quantize_affine_backward(grad, x, scale, zero_point, quant_min, quant_max, axis, grad_factor, form=0):
    _check(scale, zero_point)
    scale_, zp = per_channel(scale, x, axis), per_channel(zero_point, x, axis)
    given = widen(grad), widen(x), scale_
    if form:
        terms = qm.general_gradient_terms(*given, zp, quant_min, quant_max, _form(form))
    else:
        zp = qm.affine_zero_point(zp, quant_min, quant_max)
        terms = qm.affine_gradient_terms(*given, zp, quant_min, quant_max)
    grad_x, to_scale, to_zero_point = terms
    return (torch.empty_like(x).copy_(grad_x), channel_sum(to_scale, scale, axis, grad_factor),
            channel_sum(to_zero_point, zero_point, axis, grad_factor))
