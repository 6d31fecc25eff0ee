"""extract_lsb in Triton."""

from ._lsb import forward


def extract_lsb_forward(x, limit, bits, k, axis):
    return forward(x, limit, bits, k, axis, residual=True)[1]
