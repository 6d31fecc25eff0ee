"""round_clamp in Triton."""

from ._lsb import forward


def round_clamp_forward(x, limit, bits, axis, sign_magnitude):
    return forward(x, limit, bits, 0, axis, sign_magnitude, value=True)[0]
