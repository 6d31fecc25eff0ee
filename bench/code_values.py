"""Define what check_codes.py compares op by op, and the values that are hard: ties, edges and oddities of a dtype."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16,
            torch.float64: torch.int64}
SCALES = (0.125, 1 / 3, 1.0, 0.0371, 2.0**-20, 7.77, 1e-4, 2.0**-130)  # the last one is subnormal in float32
CHANNELS = 4


@dataclass(frozen=True)
class Results:
    """What one call gives: `exact` must have the same bits on every backend, `bounded` may differ in how it was
    added or multiplied."""
    exact: list[torch.Tensor]
    bounded: list[torch.Tensor]


def largest(setting, inputs, results: Results) -> list:
    """Return the largest magnitude in each bounded result."""
    return [y.detach().abs().amax() if y.numel() else 0 for y in results.bounded]


@dataclass(frozen=True)
class Sweep:
    """How one op is compared.

    settings(dtypes): all ways to call it, hashable and with `op`; inputs(setting, count, generator, turn): a pytree of
    tensors, about `count` values of them drawn by the generator; call(setting, inputs): its Results; sizes(setting,
    inputs, results): what a bounded result's error is measured against, a tensor or number each; definition(setting,
    inputs): exact results by NumPy, where the op's are not those of another op.
    """
    settings: Callable
    inputs: Callable
    call: Callable
    sizes: Callable = largest
    definition: Callable | None = None


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def stacked(rows: list[torch.Tensor], axis: int | None) -> torch.Tensor:
    """Return the rows of channels as one tensor, short ones filled up with their own beginning."""
    length = max(len(row) for row in rows)
    rows = [torch.cat([row, row[:length - len(row)]]) for row in rows]
    return rows[0] if axis is None else torch.stack(rows, dim=axis)


def hard_values(dtype, grid, count, lowest, highest, generator, all_patterns) -> torch.Tensor:
    """Return the oddities of a dtype, the values of `grid` with their neighbours, and `count` between two bounds."""
    drawn = torch.rand(max(count, 8), generator=generator, dtype=torch.float64) * (highest - lowest) + lowest
    parts = [oddities(dtype), with_neighbours(grid.to(dtype)), drawn.to(dtype)]
    if dtype.itemsize == 2 and all_patterns:
        parts.append(torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype))
    return torch.cat(parts)


def with_neighbours(x: torch.Tensor) -> torch.Tensor:
    """Return x and the representable values one ulp to both sides (of 0: the smallest subnormal, and a NaN)."""
    bits = x.view(INTEGERS[x.dtype])
    return torch.cat([x, (bits + 1).view(x.dtype), (bits - 1).view(x.dtype)])


def oddities(dtype: torch.dtype) -> torch.Tensor:
    """Return zeros, infinities, NaN, the largest and the smallest numbers of both signs."""
    info = torch.finfo(dtype)
    positive = torch.tensor([0.0, info.tiny, info.max, 1.0, torch.inf, info.smallest_normal / 2], dtype=dtype)
    small = torch.arange(1, 6).to(INTEGERS[dtype]).view(dtype)  # the smallest subnormals
    positive = torch.cat([with_neighbours(positive[1:4]), positive, small])
    return torch.cat([positive, -positive, torch.tensor([torch.nan], dtype=dtype)])
