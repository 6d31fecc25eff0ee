"""fake_quantize_affine in Triton."""

from ._elementwise import launch_backward, launch_forward
from .affine_math import (
    fake_quantize_affine_terms,
    fake_quantize_affine_value,
    general_affine_terms,
    general_affine_value,
)


def _levels(quant_min, quant_max, form):
    limits = float(quant_min), float(quant_max)
    return [limits if form == 0 else (*limits, tuple(float(form >> place & 1) for place in range(6)))]


def fake_quantize_affine_forward(x, scale, zero_point, quant_min, quant_max, axis, form=0):
    value, zero_point = fake_quantize_affine_value if form == 0 else general_affine_value, zero_point.to(scale.dtype)
    return launch_forward(value, x, scale, zero_point, _levels(quant_min, quant_max, form), axis, None)[0]


def fake_quantize_affine_backward(grad, x, scale, zero_point, quant_min, quant_max, axis, grad_factor, form=0):
    terms = fake_quantize_affine_terms if form == 0 else general_affine_terms
    levels, zero_point = _levels(quant_min, quant_max, form), zero_point.to(scale.dtype)
    return launch_backward(terms, [grad], x, scale, zero_point, levels, [grad_factor], axis)
