"""dequantize_codes: switch the bit-width and dequantize in one pass."""

import torch

from .. import _checks as check
from .._code_checks import check_integers, check_switch
from .._library import define

NAME = "dequantize_codes"


def _shape(codes, scale, from_bits, to_bits, axis, dtype, half_even):
    return torch.empty_like(codes, dtype=dtype)


_forward = define(NAME, "dequantize_codes_forward",
                  "(Tensor codes, Tensor scale, SymInt from_bits, SymInt to_bits, int? axis, ScalarType dtype, "
                  "bool half_even) -> Tensor", _shape)


def dequantize_codes(codes, scale, *, from_bits=8, to_bits, axis=None, dtype=torch.float32, rounding="half_even"):
    """Switch signed codes to `to_bits` bits and return the real values they then stand for, in one pass.

    x_hat = (code_l * 2^D) * scale, code_l = clamp(round(code / 2^D), lo, hi), D = from_bits - to_bits; float32
    arithmetic, rounded once to `dtype`: bit for bit the weights that double_round trained.

    Args:
        codes: any shape and strides, int8 - codes at `from_bits`. One that `from_bits` bits cannot hold raises on the
            CPU and is clamped on CUDA (no host synchronisation).
        scale: one element of any shape, or (C,) with `axis`, floating point - size of one step at `from_bits`, > 0.
        from_bits: 2..8. to_bits: 2..from_bits; equal: no switch, code * scale.
        axis: the axis of codes that has C channels, negative counts from the end; None is one scale for all.
        dtype: float32, bfloat16 or float16 (float64 on CPU, with float64 arithmetic).
        rounding: "half_even", or "half_up" = (code + 2^(D-1)) >> D.

    Returns:
        x_hat: codes' shape, the strides of torch.empty_like(codes), `dtype`.

    Gradient: none. A scale that requires one is refused rather than cut off: train with double_round, or detach it.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: bit-widths, axis, shape, device, rounding, scale requires a
        gradient. RuntimeError, on the CPU: scale not finite and > 0, a code out of range.

    Equivalent to:
        switch_bits(codes, from_bits=from_bits, to_bits=to_bits) * 2**(from_bits - to_bits) * scale

    Reference: Huang et al., 2025, arXiv 2502.01199, eq. 2-3.
    """
    check_integers(NAME, "codes", codes, torch.int8)
    check_switch(NAME, ("from_bits", "to_bits"), from_bits, to_bits)
    _check_dtype(codes, dtype)
    axis = check.check_axis(NAME, codes, axis, "codes")
    check.check_parameter(NAME, "scale", scale, codes, axis, "codes")
    if scale.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{NAME}: scale must not require a gradient (train with double_round, or detach it), "
                         "got one that does")
    scale = scale.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return _forward(codes, scale, from_bits, to_bits, None if scale.numel() == 1 else axis, dtype,
                    check.check_rounding(NAME, rounding))


def _check_dtype(codes, dtype):
    if dtype not in check.FLOATS:
        raise TypeError(f"{NAME}: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
    if dtype == torch.float64 and codes.device.type == "cuda":
        raise TypeError(f"{NAME}: dtype must be float32, bfloat16 or float16 on {codes.device} (float64 is for the "
                        "CPU), got torch.float64")
