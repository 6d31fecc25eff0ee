"""Two sums per channel in Triton, of some value of every element and of its square, in float64: for moments."""

import torch
import triton
import triton.language as tl

from ..reference._correction import moments_of
from ._elementwise import load_parameter, load_scale, tile_of
from ._tiling import contiguous, dense, tiling_of
from .quant_math import encode, from_storage, scaled


@triton.jit
def _store_sums(sums_ptr, value, mask, slot, exists, k, COUNT: tl.constexpr, BY_ROW: tl.constexpr):
    """The tile's sums of value and value^2 of entry k; a channel's partial sums lie side by side"""
    wide = tl.where(mask, value, 0.0).to(tl.float64)
    axis: tl.constexpr = 1 if BY_ROW else 0
    at = sums_ptr + (slot * COUNT + k) * 2
    tl.store(at, tl.sum(wide, axis=axis), mask=exists)
    tl.store(at + 1, tl.sum(wide * wide, axis=axis), mask=exists)


@triton.jit
def sums_kernel(x_ptr, sums_ptr, scale_ptr, shift_ptr, unit_ptr, floor_ptr, pivot_ptr, levels, rows, cols, col_tiles,
                channels, inner, LEVELS: tl.constexpr, COUNT: tl.constexpr, BY_ROW: tl.constexpr,
                BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Entries 0 to LEVELS - 1: the codes of x; the last one, where there are pivots: x - pivot"""
    offsets, mask, channel, exists, slot = tile_of(
        rows, cols, col_tiles, channels, inner, BY_ROW, BLOCK_ROWS, BLOCK_COLS)
    x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
    for k in tl.static_range(LEVELS):
        scale = load_scale(scale_ptr, unit_ptr, floor_ptr, k * channels, channel, exists, BY_ROW)
        shift = load_parameter(shift_ptr, k * channels, channel, exists, 0.0, BY_ROW)
        lo, hi = levels[k]
        _store_sums(sums_ptr, encode(scaled(x, scale, shift), lo, hi), mask, slot, exists, k, COUNT, BY_ROW)
    if pivot_ptr is not None:
        pivot = load_parameter(pivot_ptr, 0, channel, exists, 0.0, BY_ROW)
        _store_sums(sums_ptr, x.to(tl.float64) - pivot.to(tl.float64), mask, slot, exists, COUNT - 1, COUNT, BY_ROW)


def moments_of_codes_and_values(x, scales, shifts, levels, axis, with_values: bool, units=None, floors=None):
    """Return moments of the codes of every level, (K, C), and, if asked for, of x itself, (C,), from one read of x."""
    x = dense(x)
    tiling, count = tiling_of(x, axis), len(levels) + with_values
    before, after = tiling.sums
    partial = torch.zeros(before, tiling.channels, after, count, 2, dtype=torch.float64, device=x.device)
    pivots = None
    if x.numel():
        if with_values:
            first = x[tuple(slice(None) if d == axis else 0 for d in range(x.dim()))]
            pivots = first.float().contiguous()
        with torch.cuda.device_of(x):
            sums_kernel[tiling.grid](
                x_ptr=x, sums_ptr=partial, scale_ptr=contiguous(scales), shift_ptr=contiguous(shifts),
                unit_ptr=contiguous(units), floor_ptr=contiguous(floors), pivot_ptr=pivots, levels=tuple(levels),
                LEVELS=len(levels), COUNT=count, **tiling.arguments)
    sums = partial.sum(dim=(0, 2))
    size = x.numel() // max(tiling.channels, 1)
    codes = moments_of(0.0, *sums[:, :len(levels)].unbind(-1), size) if levels else None
    values = None
    if with_values:
        values = moments_of(0.0 if pivots is None else pivots.double(), *sums[:, -1].unbind(-1), size)
    return codes if codes is None else type(codes)(codes.mean.t(), codes.deviation.t()), values
