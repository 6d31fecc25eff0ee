"""correct_weight_bias in Triton: moments of both weights from a read each, then one pass."""

import torch
import triton
import triton.language as tl

from ..reference._correction import correction_rows
from ._elementwise import load_parameter, tile_of
from ._sums import moments_of_codes_and_values
from ._tiling import dense, tiling_of
from .quant_math import from_storage, to_storage


@triton.jit
def correct_kernel(x_ptr, out_ptr, rows_ptr, rows, cols, col_tiles, channels, inner, BY_ROW: tl.constexpr,
                   BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """out = (x - centre) * factor + shift"""
    offsets, mask, channel, exists, slot = tile_of(
        rows, cols, col_tiles, channels, inner, BY_ROW, BLOCK_ROWS, BLOCK_COLS)
    x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
    factor = load_parameter(rows_ptr, 0, channel, exists, 0.0, BY_ROW)
    centre = load_parameter(rows_ptr, channels, channel, exists, 0.0, BY_ROW)
    shift = load_parameter(rows_ptr, 2 * channels, channel, exists, 0.0, BY_ROW)
    value = (x - centre) * factor + shift
    tl.store(out_ptr + offsets, to_storage(value, out_ptr.dtype.element_ty), mask=mask)


def correct_weight_bias_forward(w_quant, w_ref, axis, eps):
    if w_quant.dtype == torch.float64:
        raise TypeError("correct_weight_bias: w_quant must be float32, bfloat16 or float16 for Triton kernels, "
                        "got torch.float64")
    (_, quant), (_, ref) = (moments_of_codes_and_values(w, None, None, [], axis, True) for w in (w_quant, w_ref))
    rows = correction_rows(quant, ref, eps, torch.float32)
    x = dense(w_quant)
    out = torch.empty_like(x)
    if x.numel():
        tiling = tiling_of(x, axis)
        with torch.cuda.device_of(x):
            correct_kernel[tiling.grid](x_ptr=x, out_ptr=out, rows_ptr=rows, **tiling.arguments)
    return out, rows
