"""round_clamp in Triton."""

from ._lsb import forward


def round_clamp_forward(x, limit, bits, axis):
    return forward(x, limit, bits, 0, axis, value=True)[0]
