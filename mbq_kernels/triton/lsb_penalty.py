"""lsb_penalty in Triton."""

from ._lsb import backward, forward


def lsb_penalty_forward(x, limit, bits, k, axis):
    return forward(x, limit, bits, k, axis, counts=True)[2:]


def lsb_penalty_backward(grad, x, limit, bits, k, axis, unit_gradient):
    return backward(None, grad, x, limit, bits, k, axis, unit_gradient)
