"""quantize_codes in Triton: the forward loop of fake_quantize with codes for values."""

import torch

from ..reference.quant_math import bounds
from ._elementwise import launch_forward
from .quant_math import quantize_codes_value


def quantize_codes_forward(x, scale, offset, bits, signed, axis):
    dtype = torch.int8 if signed else torch.uint8
    return launch_forward(quantize_codes_value, x, scale, offset, [bounds(bits, signed)], axis, dtype)[0]
