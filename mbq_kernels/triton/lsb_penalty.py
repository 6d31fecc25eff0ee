"""lsb_penalty in Triton."""

from ._lsb import backward, forward


def lsb_penalty_forward(x, limit, bits, k, axis, sign_magnitude):
    return forward(x, limit, bits, k, axis, sign_magnitude, counts=True)[2:]


def lsb_penalty_backward(grad, x, limit, bits, k, axis, sign_magnitude, unit_gradient):
    return backward(None, grad, x, limit, bits, k, axis, sign_magnitude, unit_gradient)
