"""fake_quantize_multi in Triton."""

from ..reference.quant_math import bounds, default_grad_factor
from ._elementwise import launch_backward, launch_forward
from .quant_math import fake_quantize_terms, fake_quantize_value


def fake_quantize_multi_forward(x, scales, offsets, scale_units, scale_floors, bits, signed, axis, out_dtype):
    ranges = [bounds(b, signed) for b in bits]
    return launch_forward(fake_quantize_value, x, scales, offsets, ranges, axis, out_dtype, scale_units, scale_floors)


def fake_quantize_multi_backward(grads, x, scales, offsets, scale_units, scale_floors, bits, signed, axis, grad_factor):
    ranges = [bounds(b, signed) for b in bits]
    count = x.numel() // max(scales.numel() // len(bits), 1)
    factors = [default_grad_factor(count, hi) if grad_factor is None else grad_factor for _, hi in ranges]
    return launch_backward(fake_quantize_terms, grads, x, scales, offsets, ranges, factors, axis,
                           units=scale_units, floors=scale_floors)
