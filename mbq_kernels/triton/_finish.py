"""The second launch of a backward or of a count: a program adds what the tiles left of its sums, in a fixed order.

Sums over channels are in float64, counts in int64. No atomics, and nothing that depends on which tile is done first.
"""

import torch
import triton
import triton.language as tl

from ._tiling import OPTIONS

FEW, MANY = 1024, 8192  # partial sums that a program holds at once: many, where there are as many in a sum
EACH = 16  # and a thread of it: as many loads are under way together, and registers suffice


@triton.jit
def _store_sums(out_ptr, sums_ptr, unit_ptr, row, rows, channels, parts, after, levels, TOGETHER: tl.constexpr,
                STEPS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """out[row] = sum of the `parts` partial sums of a row, each of TOGETHER levels, over its unit if there are units"""
    exists = row < rows
    channel, level = (row % channels)[:, None], (row // channels)[:, None]
    sums = tl.zeros((BLOCK_ROWS, BLOCK_PARTS), tl.float64)
    for step in range(STEPS):
        part = step * BLOCK_PARTS + tl.arange(0, BLOCK_PARTS)
        mask = exists[:, None] & (part < parts)[None, :]
        # int64 before the multiplication: a channel has less than 2^31 partial sums, all channels may have more
        slot = ((part // after).to(tl.int64)[None, :] * channels + channel) * after + (part % after)[None, :]
        for k in range(TOGETHER):
            sums += tl.load(sums_ptr + slot * levels + level + k, mask=mask, other=0.0).to(tl.float64)
    total = tl.sum(sums, axis=1)
    if unit_ptr is not None:
        total = total / tl.load(unit_ptr + row, mask=exists, other=1.0).to(tl.float64)
    tl.store(out_ptr + row, total.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def channel_sums_kernel(grad_scale_ptr, scale_sums_ptr, unit_ptr, grad_shift_ptr, shift_sums_ptr, rows, channels,
                        parts, after, levels, TOGETHER: tl.constexpr, STEPS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                        BLOCK_PARTS: tl.constexpr):
    """Gradients of the scales and of the shifts, from partial sums (parts before, channels, parts after, levels)"""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    _store_sums(grad_scale_ptr, scale_sums_ptr, unit_ptr, row, rows, channels, parts, after, levels, TOGETHER, STEPS,
                BLOCK_ROWS, BLOCK_PARTS)
    if grad_shift_ptr is not None:
        _store_sums(grad_shift_ptr, shift_sums_ptr, None, row, rows, channels, parts, after, levels, TOGETHER, STEPS,
                    BLOCK_ROWS, BLOCK_PARTS)


@triton.jit
def counts_kernel(penalty_ptr, rate_ptr, counts_ptr, tiles, numel, STEPS: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """penalty = sum of the first counts of the tiles, rate = that of the second ones / numel"""
    penalty, nonzero = tl.zeros((BLOCK_PARTS,), tl.int64), tl.zeros((BLOCK_PARTS,), tl.int64)
    for step in range(STEPS):
        tile = step * BLOCK_PARTS + tl.arange(0, BLOCK_PARTS)
        at = counts_ptr + tile.to(tl.int64) * 2
        penalty += tl.load(at, mask=tile < tiles, other=0).to(tl.int64)
        nonzero += tl.load(at + 1, mask=tile < tiles, other=0).to(tl.int64)
    tl.store(penalty_ptr, tl.sum(penalty, axis=0).to(tl.float32))
    rate = tl.sum(nonzero, axis=0).to(tl.float64) / tl.cast(numel, tl.float64)
    tl.store(rate_ptr, rate.to(tl.float32))


def block_of(parts: int, by_row: bool) -> dict:
    """Return constants and options of channel_sums_kernel, by how many partial sums there are of a row.

    By column neighbouring channels lie side by side, and eight of them fill the least that memory gives.
    """
    rows = 32 if parts <= 32 else 1 if by_row else 8
    return {"BLOCK_ROWS": rows, **steps_of(parts, rows)}


def steps_of(parts: int, rows: int = 1) -> dict:
    """Return the steps of a program that adds `parts` partial sums of each of `rows` rows, and its warps."""
    size = FEW if rows * parts <= FEW else MANY
    block = size // rows
    return {"BLOCK_PARTS": block, "STEPS": triton.cdiv(parts, block), **OPTIONS, "num_warps": size // (32 * EACH)}


def launch_channel_sums(tiling, scales, scale_sums, units, shifts, shift_sums, levels: int):
    """Return gradients like scales and shifts, which are contiguous; of shifts that are None no elements."""
    before, after = tiling.sums
    rows, parts = scales.numel(), before * after
    grad_scales, grad_shifts = torch.empty_like(scales), None if shifts is None else torch.empty_like(shifts)
    if rows:
        block = block_of(parts, tiling.by_row)
        channel_sums_kernel[(triton.cdiv(rows, block["BLOCK_ROWS"]),)](
            grad_scale_ptr=grad_scales, scale_sums_ptr=scale_sums, unit_ptr=units, grad_shift_ptr=grad_shifts,
            shift_sums_ptr=shift_sums, rows=rows, channels=tiling.channels, parts=parts, after=after, levels=levels,
            TOGETHER=levels * tiling.channels // rows, **block)
    return grad_scales, scales.new_empty(0) if shifts is None else grad_shifts


def launch_counts(counts, numel: int):
    """Return (penalty, rate) of `numel` elements from the counts of their tiles, (tiles, 2)."""
    penalty, rate = (counts.new_empty((), dtype=torch.float32) for _ in range(2))
    counts_kernel[(1,)](penalty_ptr=penalty, rate_ptr=rate, counts_ptr=counts, tiles=len(counts), numel=max(numel, 1),
                        **steps_of(len(counts)))
    return penalty, rate
