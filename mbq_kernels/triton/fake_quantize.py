"""fake_quantize in Triton: fake_quantize_multi at one bit-width."""

from .fake_quantize_multi import fake_quantize_multi_backward, fake_quantize_multi_forward


def fake_quantize_forward(x, scale, offset, scale_unit, scale_floor, bits, signed, axis, out_dtype):
    return fake_quantize_multi_forward(x, scale, offset, scale_unit, scale_floor, [bits], signed, axis, out_dtype)[0]


def fake_quantize_backward(grad, x, scale, offset, scale_unit, scale_floor, bits, signed, axis, grad_factor):
    return fake_quantize_multi_backward([grad], x, scale, offset, scale_unit, scale_floor, [bits], signed, axis,
                                        grad_factor)
