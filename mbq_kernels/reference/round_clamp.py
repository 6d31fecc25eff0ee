"""round_clamp in plain PyTorch."""

import torch

from ._lsb import position, value


@torch.no_grad()
def round_clamp_forward(x, limit, bits, axis, sign_magnitude):
    return value(x, position("round_clamp", x, limit, axis, sign_magnitude), limit, bits, axis, sign_magnitude)
