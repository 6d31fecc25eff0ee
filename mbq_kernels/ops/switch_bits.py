"""switch_bits: codes of a lower bit-width from those of a higher one."""

import torch

from .. import _checks as check
from .._code_checks import check_integers, check_switch
from .._library import define

NAME = "switch_bits"


def _shape(codes, from_bits, to_bits, half_even):
    return torch.empty_like(codes)


_forward = define(NAME, "switch_bits_forward",
                  "(Tensor codes, SymInt from_bits, SymInt to_bits, bool half_even) -> Tensor", _shape)


def switch_bits(codes, *, from_bits=8, to_bits, rounding="half_even"):
    """Switch signed codes from a higher to a lower bit-width, in integers.

    code_l = clamp(round(code / 2^D), -2^(to_bits-1), 2^(to_bits-1) - 1), D = from_bits - to_bits

    Args:
        codes: any shape and strides, int8 - codes at `from_bits`, as quantize_codes gives them. One that `from_bits`
            bits cannot hold raises on the CPU and is clamped on CUDA (no host synchronisation).
        from_bits: 2..8. to_bits: 2..from_bits; equal: the codes as they are.
        rounding: "half_even", or "half_up" = (code + 2^(D-1)) >> D. Switch by the rule that the network was trained by.

    Returns:
        codes: int8, the shape and, as torch.empty_like gives them, the strides of the input.

    Gradient: none, codes are integers.

    Raises:
        TypeError: codes is not an int8 tensor, or a bit-width not an integer. ValueError: bit-widths, rounding.
        RuntimeError: on the CPU, a code out of range.

    Equivalent to ("half_even"):
        (codes / 2**(from_bits - to_bits)).round().clamp(-2**(to_bits - 1), 2**(to_bits - 1) - 1).to(torch.int8)

    Reference: Huang et al., "Nearly Lossless Adaptive Bit Switching" (Double Rounding), 2025, arXiv 2502.01199, eq. 2.
    """
    check_integers(NAME, "codes", codes, torch.int8)
    check_switch(NAME, ("from_bits", "to_bits"), from_bits, to_bits)
    return _forward(codes, from_bits, to_bits, check.check_rounding(NAME, rounding))
