"""How a dense tensor is cut for the Triton loops, and what makes a tensor dense: the host's share of a launch.

Both depend on sizes and strides alone, and a network asks about the same ones at every step, so answers are kept.
"""

import functools
import math

import torch
import triton

TILE = 1024  # elements of a program: 8 a thread, two 16-byte accesses in float32; twice as many where one is a byte
SHORT_ROW = 32  # shorter `inner` is viewed by column
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # of every launch and every ahead-of-time compile


class Tiling:
    """How a dense x is cut: the matrix, the tiles, and where a channel's partial sums are."""

    def __init__(self, sizes, strides, axis, tile):
        outer, channels, inner = _layout(sizes, strides, axis)
        by_row = channels <= 1 or inner >= SHORT_ROW
        rows, cols = (outer * channels, inner) if by_row else (outer, channels * inner)
        block_cols = min(tile if by_row else tile // 8, triton.next_power_of_2(max(cols, 1)))
        block_rows = tile // block_cols if rows > 1 else 1
        row_tiles, col_tiles = triton.cdiv(rows, block_rows), triton.cdiv(cols, block_cols)
        self.channels, self.by_row, self.grid = channels, by_row, (row_tiles * col_tiles,)
        # (before the channel, after it) in the order of the partial sums
        self.sums = (outer, col_tiles) if by_row else (row_tiles, inner)
        self.arguments = {"rows": rows, "cols": cols, "col_tiles": col_tiles, "channels": channels, "inner": inner,
                          "BY_ROW": by_row, "BLOCK_ROWS": block_rows, "BLOCK_COLS": block_cols, **OPTIONS}


_cached_tiling = functools.lru_cache(maxsize=4096)(Tiling)  # 10 us of every launch otherwise


def tiling_of(x, axis, other=None) -> Tiling:
    """Return how a dense x is cut, where results or gradients may have the dtype `other`."""
    tile = TILE if min(x.element_size(), (other or x.dtype).itemsize) > 1 else 2 * TILE
    return _cached_tiling(x.shape, x.stride(), axis, tile)


def _memory_order(sizes, strides) -> list[int]:
    """Return dimensions from the slowest to the fastest; those of size 0 and 1 have no place and come first."""
    return sorted(range(len(sizes)), key=lambda d: (sizes[d] >= 2, -strides[d] if sizes[d] >= 2 else 0))


def _layout(sizes, strides, axis) -> tuple[int, int, int]:
    """Return (outer, channels, inner) of a dense tensor"""
    channels = 1 if axis is None else sizes[axis]
    if channels < 2:
        return 1, channels, math.prod(sizes)
    order = _memory_order(sizes, strides)
    ordered, at = [sizes[d] for d in order], order.index(axis)
    return math.prod(ordered[:at]), channels, math.prod(ordered[at + 1:])


@functools.lru_cache(maxsize=4096)
def _fills_memory(sizes, strides) -> bool:
    expected = 1
    for d in reversed(_memory_order(sizes, strides)):
        if sizes[d] >= 2 and strides[d] != expected:
            return False
        expected *= max(sizes[d], 1)
    return True


def dense(x):
    """Return x, or a copy whose elements fill one block of memory, with the strides of torch.empty_like."""
    if x.is_contiguous() or _fills_memory(x.shape, x.stride()):
        return x
    return torch.empty_like(x).copy_(x)


def aligned(grad, x):
    same = grad.stride() == x.stride() or all(
        size < 2 or a == b for size, a, b in zip(x.shape, grad.stride(), x.stride(), strict=True))
    return grad if same else torch.empty_like(x, dtype=grad.dtype).copy_(grad)


def contiguous(parameter):
    return None if parameter is None else parameter.contiguous()
