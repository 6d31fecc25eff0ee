"""The Triton loop of round_clamp and the ops on its least significant bits, over the tiles of _elementwise.py.

Counts are integers, one pair a program, which _finish.py adds: exact in any order.
"""

import torch
import triton
import triton.language as tl

from ..reference._lsb import form, slope_factor
from ._elementwise import check_dtype, load_parameter, tile_of
from ._finish import launch_counts
from ._tiling import aligned, dense, tiling_of
from .quant_math import (
    from_storage,
    lsb_gradient,
    lsb_residual,
    lsb_slope,
    round_clamp_code,
    round_clamp_scale,
    round_clamp_signed,
    to_storage,
    unit_position,
    within_unit,
)


@triton.jit
def round_clamp_kernel(x_ptr, value_ptr, residual_ptr, counts_ptr, limit_ptr, form, steps, coarse, ratio, rows, cols,
                       col_tiles, channels, inner, BY_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                       BLOCK_COLS: tl.constexpr):
    """value, residual B and (sum |B|, number of B != 0) of the tile: those that have a pointer"""
    offsets, mask, channel, exists, slot = tile_of(
        rows, cols, col_tiles, channels, inner, BY_ROW, BLOCK_ROWS, BLOCK_COLS)
    limit = load_parameter(limit_ptr, 0, channel, exists, 1.0, BY_ROW)
    x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
    u = within_unit(unit_position(x, limit, form))
    if value_ptr is not None:
        code = round_clamp_signed(round_clamp_code(u, steps), x, steps, form)
        value = code * round_clamp_scale(limit, steps, form)
        tl.store(value_ptr + offsets, to_storage(value, value_ptr.dtype.element_ty), mask=mask)
    if residual_ptr is not None or counts_ptr is not None:
        residual = lsb_residual(u, steps, coarse, ratio)
        if residual_ptr is not None:
            tl.store(residual_ptr + offsets, residual.to(tl.int8), mask=mask)
        if counts_ptr is not None:
            size = tl.where(mask, tl.abs(residual), 0.0).to(tl.int32)
            nonzero = (size != 0).to(tl.int32)
            at = counts_ptr + tl.program_id(0).to(tl.int64) * 2
            tl.store(at, tl.sum(tl.sum(size, axis=1), axis=0))
            tl.store(at + 1, tl.sum(tl.sum(nonzero, axis=1), axis=0))


@triton.jit
def lsb_gradient_kernel(grad_ptr, grad_penalty_ptr, x_ptr, grad_x_ptr, limit_ptr, form, steps, coarse, ratio, factor,
                        rows, cols, col_tiles, channels, inner, BY_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                        BLOCK_COLS: tl.constexpr):
    """grad_x = grad + grad_penalty * factor / limit * sign(B) d|x|/dx, grad 0 where it has no pointer"""
    offsets, mask, channel, exists, slot = tile_of(
        rows, cols, col_tiles, channels, inner, BY_ROW, BLOCK_ROWS, BLOCK_COLS)
    limit = load_parameter(limit_ptr, 0, channel, exists, 1.0, BY_ROW)
    slope = lsb_slope(tl.load(grad_penalty_ptr), limit, factor)
    x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
    residual = lsb_residual(within_unit(unit_position(x, limit, form)), steps, coarse, ratio)
    grad = 0.0
    if grad_ptr is not None:
        grad = from_storage(tl.load(grad_ptr + offsets, mask=mask, other=0.0))
    grad_x = lsb_gradient(grad, x, residual, slope, form)
    tl.store(grad_x_ptr + offsets, to_storage(grad_x, grad_x_ptr.dtype.element_ty), mask=mask)


def _numbers(limit, bits, k, sign_magnitude) -> dict:
    return {"limit_ptr": None if limit is None else limit.contiguous(), "form": form(limit, sign_magnitude),
            "steps": 2.0**bits, "coarse": 2.0 ** (bits - k), "ratio": 2.0**k}


def forward(x, limit, bits, k, axis, sign_magnitude, *, value=False, residual=False, counts=False):
    """Return (value, residual, penalty, rate), None where not asked for"""
    check_dtype(x)
    x = dense(x)
    tiling = tiling_of(x, axis, torch.int8 if residual else None)
    value = torch.empty_like(x) if value else None
    residual = torch.empty_like(x, dtype=torch.int8) if residual else None
    pairs = x.new_empty((*tiling.grid, 2), dtype=torch.int32) if counts else None
    with torch.cuda.device_of(x):
        if x.numel():
            round_clamp_kernel[tiling.grid](x_ptr=x, value_ptr=value, residual_ptr=residual, counts_ptr=pairs,
                                            **_numbers(limit, bits, k, sign_magnitude), **tiling.arguments)
        return value, residual, *(launch_counts(pairs, x.numel()) if counts else (None, None))


def backward(grad, grad_penalty, x, limit, bits, k, axis, sign_magnitude, unit_gradient):
    """Return the gradient of the penalty, added to `grad` where there is one"""
    check_dtype(x)
    x = dense(x)
    grad_x = torch.empty_like(x)
    if x.numel():
        tiling = tiling_of(x, axis)
        with torch.cuda.device_of(x):
            lsb_gradient_kernel[tiling.grid](
                grad_ptr=None if grad is None else aligned(grad, x), grad_penalty_ptr=grad_penalty, x_ptr=x,
                grad_x_ptr=grad_x, factor=slope_factor(limit, bits, sign_magnitude, unit_gradient),
                **_numbers(limit, bits, k, sign_magnitude), **tiling.arguments)
    return grad_x
