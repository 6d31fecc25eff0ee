"""round_clamp_lsb in Triton."""

from ._lsb import backward, forward


def round_clamp_lsb_forward(x, limit, bits, k, axis, sign_magnitude):
    value, _, penalty, rate = forward(x, limit, bits, k, axis, sign_magnitude, value=True, counts=True)
    return value, penalty, rate


def round_clamp_lsb_backward(grad, grad_penalty, x, limit, bits, k, axis, sign_magnitude, unit_gradient):
    return backward(grad, grad_penalty, x, limit, bits, k, axis, sign_magnitude, unit_gradient)
