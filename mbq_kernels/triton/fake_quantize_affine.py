"""fake_quantize_affine in Triton."""

from ._elementwise import launch_backward, launch_forward
from .quant_math import fake_quantize_affine_terms, fake_quantize_affine_value


def fake_quantize_affine_forward(x, scale, zero_point, quant_min, quant_max, axis):
    ranges = [(float(quant_min), float(quant_max))]
    return launch_forward(fake_quantize_affine_value, x, scale, zero_point, ranges, axis, None)[0]


def fake_quantize_affine_backward(grad, x, scale, zero_point, quant_min, quant_max, axis, grad_factor):
    ranges = [(float(quant_min), float(quant_max))]
    return launch_backward(fake_quantize_affine_terms, [grad], x, scale, zero_point, ranges, [grad_factor], axis)
