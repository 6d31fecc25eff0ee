"""double_round in Triton."""

from ..reference.quant_math import bounds, default_grad_factor, second_rounding
from ._elementwise import launch_backward, launch_forward
from .quant_math import double_round_terms, double_round_value


def _levels(high_bits, bits, half_up):
    return [(*bounds(b, True), second_rounding(2.0 ** (high_bits - b), half_up)) for b in bits]


def double_round_forward(x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up, out_dtype):
    levels = _levels(high_bits, bits, half_up)
    return launch_forward(double_round_value, x, scale, None, levels, axis, out_dtype, scale_unit, scale_floor)


def double_round_backward(grads, x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up, grad_factor,
                          scale_chain):
    levels, count = _levels(high_bits, bits, half_up), x.numel() // max(scale.numel(), 1)
    factors = [(default_grad_factor(count, hi) if grad_factor is None else grad_factor) * (ratio if scale_chain else 1)
               for _, hi, (ratio, *_) in levels]
    return launch_backward(double_round_terms, grads, x, scale, None, levels, factors, axis,
                           units=scale_unit, floors=scale_floor)[:2]
