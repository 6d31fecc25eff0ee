"""fake_quantize_foreach in Triton: fake_quantize_multi tensor after tensor, a launch each."""

from ..reference.fake_quantize_foreach import backward_each, forward_each
from .fake_quantize_multi import fake_quantize_multi_backward, fake_quantize_multi_forward


def fake_quantize_foreach_forward(xs, scales, offsets, scale_units, scale_floors, bits, signed, axes, out_dtype):
    return forward_each(fake_quantize_multi_forward, xs, scales, offsets, scale_units, scale_floors, bits, signed,
                        axes, out_dtype)


def fake_quantize_foreach_backward(grads, xs, scales, offsets, scale_units, scale_floors, bits, signed, axes,
                                   grad_factor):
    return backward_each(fake_quantize_multi_backward, grads, xs, scales, offsets, scale_units, scale_floors, bits,
                         signed, axes, grad_factor)
