"""fake_quantize_affine in plain PyTorch."""

import torch

from . import affine_math as am
from ._channels import channel_sum, check_scale, per_channel, widen


def _checked(x, scale, zero_point, quant_min, quant_max, axis):
    """Return scale and zero_point shaped for x, once their values are looked at: on the CPU alone."""
    check_scale("fake_quantize_affine", scale)
    if zero_point.device.type == "cpu":
        integer = not zero_point.is_floating_point()
        wrong = (zero_point < quant_min) | (zero_point > quant_max) if integer else zero_point.isnan()
        if wrong.any():
            index = int(wrong.flatten().nonzero()[0])
            must = (f"be between quant_min and quant_max, {quant_min} and {quant_max}, "
                    f"got {zero_point.flatten()[index]}" if integer else "not be NaN")
            raise RuntimeError(f"fake_quantize_affine: zero_point must {must} (element {index})")
    return per_channel(scale, x, axis), per_channel(zero_point.to(scale.dtype), x, axis)


def _form(form: int) -> tuple[bool, ...]:
    return tuple(bool(form >> place & 1) for place in range(6))


@torch.no_grad()
def fake_quantize_affine_forward(x, scale, zero_point, quant_min, quant_max, axis, form=0):
    scale_, zp = _checked(x, scale, zero_point, quant_min, quant_max, axis)
    if form:
        code = am.general_encode(widen(x), scale_, zp, quant_min, quant_max, _form(form))
        return torch.empty_like(x).copy_(am.general_decode(code, scale_))
    zp = am.affine_zero_point(zp, quant_min, quant_max)
    _, kept = am.affine_encode(widen(x), 1 / scale_, zp, quant_min, quant_max)
    return torch.empty_like(x).copy_(am.affine_decode(kept, scale_))


@torch.no_grad()
def fake_quantize_affine_backward(grad, x, scale, zero_point, quant_min, quant_max, axis, grad_factor, form=0):
    scale_, zp = _checked(x, scale, zero_point, quant_min, quant_max, axis)
    given = widen(grad), widen(x), scale_
    if form:
        terms = am.general_gradient_terms(*given, zp, quant_min, quant_max, _form(form))
    else:
        zp = am.affine_zero_point(zp, quant_min, quant_max)
        terms = am.affine_gradient_terms(*given, zp, quant_min, quant_max)
    grad_x, to_scale, to_zero_point = terms
    return (torch.empty_like(x).copy_(grad_x), channel_sum(to_scale, scale, axis, grad_factor),
            channel_sum(to_zero_point, zero_point.to(scale.dtype), axis, grad_factor))
