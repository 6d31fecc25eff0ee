"""extract_lsb in Triton."""

from ._lsb import forward


def extract_lsb_forward(x, limit, bits, k, axis, sign_magnitude):
    return forward(x, limit, bits, k, axis, sign_magnitude, residual=True)[1]
