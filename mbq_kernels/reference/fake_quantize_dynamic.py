"""fake_quantize_dynamic in plain PyTorch."""

import torch

from . import affine_math as am
from ._channels import widen


def _check_rows(x):
    if x.dim() != 2 or x.shape[1] == 0:
        raise RuntimeError(f"fake_quantize_dynamic: x must be (rows, size), size >= 1, got {tuple(x.shape)}")


@torch.no_grad()
def fake_quantize_dynamic_forward(x, quant_min, quant_max, symmetric, eps):
    _check_rows(x)
    wide = widen(x)
    least, greatest = wide.amin(1).clamp(max=0), wide.amax(1).clamp(min=0)
    scale, zp = am.dynamic_range(least, greatest, quant_min, quant_max, symmetric, eps, x.dtype)
    _, kept = am.affine_encode(wide, (1 / scale)[:, None], zp[:, None], quant_min, quant_max)
    return x.new_empty(x.shape).copy_(am.affine_decode(kept, scale[:, None])), scale, zp


@torch.no_grad()
def fake_quantize_dynamic_backward(grad, x, scale, zero_point, quant_min, quant_max, product):
    _check_rows(x)
    if grad.shape != x.shape or scale.shape != x.shape[:1] or zero_point.shape != x.shape[:1]:
        raise RuntimeError("fake_quantize_dynamic: grad must have x's shape, scale and zero_point an element per row")
    grad_x = am.dynamic_gradient(widen(grad), widen(x), scale[:, None], zero_point[:, None], quant_min, quant_max,
                                 product)
    return x.new_empty(x.shape).copy_(grad_x)
