"""The Triton loop of every elementwise op with per-channel parameters: channel indexing, masks, sums, launch.

A dense tensor in memory order is (outer, channels, inner). Two views of it as a matrix cover all layouts: by row,
(outer * channels, inner), where a row has one scale and sums go along it; by column, (outer, channels * inner), for
short `inner` (channels_last), where a column has one scale and sums go down a tile. One read of x serves every
bit-width. Tiles leave partial sums, which _finish.py adds: a fixed order, no atomics.
"""

import torch
import triton
import triton.language as tl

from ._finish import launch_channel_sums
from ._tiling import aligned, contiguous, dense, tiling_of
from .quant_math import effective_scale, from_storage, to_storage


@triton.jit
def tile_of(rows, cols, col_tiles, channels, inner,
          BY_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """(offsets, their mask, channel of each row or column, which of those exist, slots of their partial sums)"""
    row_tile = tl.program_id(0) // col_tiles
    col_tile = tl.program_id(0) % col_tiles
    # int64 before the multiplication: tensors have more than 2^31 elements, but not more than 2^31 columns by column,
    # where a division follows (in int64 a subroutine, for whose call registers go to memory)
    row = row_tile.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = (col_tile.to(tl.int64) if BY_ROW else col_tile) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    if BY_ROW:
        channel = row % channels
        exists = row < rows
        slot = row * col_tiles + col_tile
    else:
        channel = col // inner
        exists = col < cols
        slot = row_tile.to(tl.int64) * cols + col
    offsets = row[:, None] * cols + col[None, :]
    return offsets, (row < rows)[:, None] & (col < cols)[None, :], channel, exists, slot


@triton.jit
def load_parameter(ptr, row, channel, exists, missing: tl.constexpr, BY_ROW: tl.constexpr):
    """The value of each channel in the row at `row`, along the tile; `missing` outside, and where there is no such
    parameter"""
    if ptr is None:
        value = tl.full(channel.shape, missing, tl.float32)
    else:
        value = tl.load(ptr + row + channel, mask=exists, other=missing)
    return value[:, None] if BY_ROW else value[None, :]


@triton.jit
def load_scale(scale_ptr, unit_ptr, floor_ptr, row, channel, exists, BY_ROW: tl.constexpr):
    """The scale of each channel, likewise, in units and at least its floor where there are such"""
    scale = load_parameter(scale_ptr, row, channel, exists, 1.0, BY_ROW)
    if unit_ptr is not None or floor_ptr is not None:
        scale = effective_scale(scale, load_parameter(unit_ptr, row, channel, exists, 1.0, BY_ROW),
                                load_parameter(floor_ptr, row, channel, exists, float("-inf"), BY_ROW))
    return scale


@triton.jit
def forward_kernel(x_ptr, out_ptrs, scale_ptr, shift_ptr, unit_ptr, floor_ptr, levels, rows, cols, col_tiles, channels,
                   inner, VALUE: tl.constexpr, ONE_SCALE: tl.constexpr, BY_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                   BLOCK_COLS: tl.constexpr):
    """out[k] = VALUE(x, max(scale[k] * unit[k], floor[k]), shift[k], levels[k])"""
    offsets, mask, channel, exists, slot = tile_of(
        rows, cols, col_tiles, channels, inner, BY_ROW, BLOCK_ROWS, BLOCK_COLS)
    x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
    for k in tl.static_range(len(out_ptrs)):
        scale = load_scale(scale_ptr, unit_ptr, floor_ptr, 0 if ONE_SCALE else k * channels, channel, exists, BY_ROW)
        shift = load_parameter(shift_ptr, k * channels, channel, exists, 0.0, BY_ROW)
        value = VALUE(x, scale, shift, levels[k])
        tl.store(out_ptrs[k] + offsets, to_storage(value, out_ptrs[k].dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(grad_ptrs, x_ptr, grad_x_ptr, scale_ptr, shift_ptr, unit_ptr, floor_ptr, grad_scale_ptr,
                    scale_sums_ptr, shift_sums_ptr, levels, factors, rows, cols, col_tiles, channels, inner,
                    TERMS: tl.constexpr, ONE_SCALE: tl.constexpr, BY_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                    BLOCK_COLS: tl.constexpr):
    """grad_x = sum of TERMS over k, in that order; factor[k] times the tile's sums of the other two terms

    grad_scale_ptr: what the upstream gradient of every channel is multiplied by first, or None.
    """
    offsets, mask, channel, exists, slot = tile_of(
        rows, cols, col_tiles, channels, inner, BY_ROW, BLOCK_ROWS, BLOCK_COLS)
    axis: tl.constexpr = 1 if BY_ROW else 0
    x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
    for k in tl.static_range(len(grad_ptrs)):
        grad = from_storage(tl.load(grad_ptrs[k] + offsets, mask=mask, other=0.0))
        if grad_scale_ptr is not None:
            grad = grad * load_parameter(grad_scale_ptr, k * channels, channel, exists, 0.0, BY_ROW)
        # after grad: in the other order ptxas spills a register on sm_80
        shift = load_parameter(shift_ptr, k * channels, channel, exists, 0.0, BY_ROW)
        scale = load_scale(scale_ptr, unit_ptr, floor_ptr, 0 if ONE_SCALE else k * channels, channel, exists, BY_ROW)
        to_x, to_scale, to_shift = TERMS(grad, x, scale, shift, levels[k])
        if k == 0:
            grad_x = to_x
        else:
            grad_x = grad_x + to_x
        # masked: a shift may make the terms of absent elements inf * 0
        to_scale = tl.sum(tl.where(mask, to_scale, 0.0), axis=axis) * factors[k]
        tl.store(scale_sums_ptr + slot * len(grad_ptrs) + k, to_scale, mask=exists)
        if shift_ptr is not None:
            to_shift = tl.sum(tl.where(mask, to_shift, 0.0), axis=axis) * factors[k]
            tl.store(shift_sums_ptr + slot * len(grad_ptrs) + k, to_shift, mask=exists)
    tl.store(grad_x_ptr + offsets, to_storage(grad_x, grad_x_ptr.dtype.element_ty), mask=mask)


def check_dtype(x):
    if x.dtype == torch.float64:
        raise TypeError("mbq_kernels: x must be float32, bfloat16 or float16 for Triton kernels, got torch.float64")


def launch_forward(value, x, scales, shifts, levels, axis, out_dtype, units=None, floors=None):
    """Return one result per entry of `levels`, in x's memory order.

    scales, their units and floors, and shifts: K rows of C, in any shape, without shifts also one row for all K;
    levels: what `value` takes, K tuples of as many floats.
    """
    check_dtype(x)
    x = dense(x)
    outs = tuple(torch.empty_like(x, dtype=out_dtype or x.dtype) for _ in levels)
    if x.numel():
        tiling = tiling_of(x, axis, out_dtype)
        with torch.cuda.device_of(x):
            forward_kernel[tiling.grid](
                x_ptr=x, out_ptrs=outs, scale_ptr=scales.contiguous(), shift_ptr=contiguous(shifts),
                unit_ptr=contiguous(units), floor_ptr=contiguous(floors), levels=tuple(levels), VALUE=value,
                ONE_SCALE=_one_scale(scales, tiling), **tiling.arguments)
    return list(outs)


def launch_backward(terms, grads, x, scales, shifts, levels, factors, axis, grad_scales=None, units=None, floors=None):
    """Return (grad_x, grad_scales, grad_shifts): the last two in the shapes of scales and shifts, or no elements.

    units, floors: like scales. grad_scales: like scales - what the upstream gradients are multiplied by first.
    """
    check_dtype(x)
    x = dense(x)
    grad_x, tiling = torch.empty_like(x), tiling_of(x, axis)
    before, after = tiling.sums
    sums = scales.new_empty(before * tiling.channels * after * len(levels))
    shift_sums = None if shifts is None else torch.empty_like(sums)
    scales, shifts, units = scales.contiguous(), contiguous(shifts), contiguous(units)
    with torch.cuda.device_of(x):
        if x.numel():
            backward_kernel[tiling.grid](
                grad_ptrs=tuple(aligned(grad, x) for grad in grads), x_ptr=x, grad_x_ptr=grad_x,
                scale_ptr=scales, shift_ptr=shifts, unit_ptr=units,
                floor_ptr=contiguous(floors), grad_scale_ptr=contiguous(grad_scales), scale_sums_ptr=sums,
                shift_sums_ptr=shift_sums, levels=tuple(levels), factors=tuple(factors), TERMS=terms,
                ONE_SCALE=_one_scale(scales, tiling), **tiling.arguments)
        return grad_x, *launch_channel_sums(tiling, scales, sums, units, shifts, shift_sums, len(levels))


def _one_scale(scales, tiling) -> bool:
    """Return whether all levels share one row of scales."""
    return scales.numel() == tiling.channels
