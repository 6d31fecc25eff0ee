"""dequantize_codes in Triton: the tiles of elementwise.py, the integers of switch_bits."""

import torch
import triton
import triton.language as tl

from ..reference.quant_math import bounds, switching
from ._elementwise import Tiling, dense, load_parameter, tile_of
from .quant_math import clamp, switch_code, to_storage


@triton.jit
def dequantize_codes_kernel(codes_ptr, out_ptr, scale_ptr, from_lo, from_hi, switch, step, rows, cols, col_tiles,
                            channels, inner, BY_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                            BLOCK_COLS: tl.constexpr):
    """out = clamp(round(code / 2^shift), lo, hi) * 2^shift * scale"""
    offsets, mask, channel, exists, slot = tile_of(
        rows, cols, col_tiles, channels, inner, BY_ROW, BLOCK_ROWS, BLOCK_COLS)
    scale = load_parameter(scale_ptr, 0, channel, exists, 1.0, BY_ROW)
    code = clamp(tl.load(codes_ptr + offsets, mask=mask, other=0).to(tl.int32), from_lo, from_hi)
    value = switch_code(code, switch).to(tl.float32) * step * scale
    tl.store(out_ptr + offsets, to_storage(value, out_ptr.dtype.element_ty), mask=mask)


def dequantize_codes_forward(codes, scale, from_bits, to_bits, axis, dtype, half_even):
    if dtype == torch.float64:
        raise TypeError("dequantize_codes: dtype must be float32, bfloat16 or float16 for Triton kernels, "
                        "got torch.float64")
    codes = dense(codes)
    out = torch.empty_like(codes, dtype=dtype)
    if codes.numel():
        tiling = Tiling(codes, axis)
        switch = switching(from_bits, to_bits, half_even)
        from_lo, from_hi = (int(bound) for bound in bounds(from_bits, True))
        with torch.cuda.device_of(codes):
            dequantize_codes_kernel[tiling.grid()](
                codes_ptr=codes, out_ptr=out, scale_ptr=scale.contiguous(), from_lo=from_lo, from_hi=from_hi,
                switch=switch, step=2.0 ** (from_bits - to_bits), **tiling.arguments())
    return out
