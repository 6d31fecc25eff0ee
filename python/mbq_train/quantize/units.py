"""Scales in units of their first value: what makes one learning rate fit them and the weights alike.

The first value of a scale is some 1e-4 to 1e-1. Adam moves any parameter by about the learning rate a step, so that at
1e-3 a scale of 1e-3 would be anywhere after a few steps, and below 0 soon. The Parameter therefore is the scale
over a unit of STEPS_OF_FIRST times its first value, and the kernels multiply it by the unit; a step of SGD moves the
scale as it would a Parameter that is the scale itself, because they divide the gradient by the unit.
"""

from collections.abc import Iterable

import torch
from torch import nn

# A power of two, so that the first value is exact; measured at 4, 8 and 16: 32 carries scales below their floor.
STEPS_OF_FIRST = 8.0
FLOOR = 2.0**-6  # of the first value: at 8 bits the best scale of usual weights and activations lies above 1/8
SMALLEST_SCALE = 1e-8


def least_scale(first: torch.Tensor) -> torch.Tensor:
    """Return the floor of a scale whose first value is `first`."""
    return first.abs() * FLOOR


def first_scale(size: torch.Tensor, divisor: float) -> torch.Tensor:
    """Return size / divisor, at least 1e-8; a channel of size 0 takes the mean of all channels, and 1 where all are
    0."""
    whole = size.mean()
    spare = torch.where(whole == 0, torch.ones_like(whole), whole)
    scale = torch.where(size == 0, spare, size) / divisor
    return torch.where(scale < SMALLEST_SCALE, SMALLEST_SCALE, scale)


class Rows(nn.Module):
    """Hold one buffer with a row for each bit-width, from high to low; by name as nn.ParameterDict holds Parameters.

    Args:
        names: of the rows.
        row: any tensor - what every row is at first.
    """

    def __init__(self, names: list[str], row: torch.Tensor):
        super().__init__()
        self.names = {name: index for index, name in enumerate(names)}
        self.register_buffer("rows", row.expand(len(names), *row.shape).clone() if names else None)
        self._views = None, ()  # the buffer, and its rows: making one takes longer than all else here

    def __getstate__(self):
        return {**self.__dict__, "_views": (None, ())}

    def __getitem__(self, name: str) -> torch.Tensor:
        rows = self._buffers["rows"]
        if torch.compiler.is_compiling():  # graphs must not write attributes
            return rows[self.names[name]]
        if self._views[0] is not rows:
            self._views = rows, rows.unbind()
        return self._views[1][self.names[name]]

    def fill(self, name: str, values: torch.Tensor) -> None:
        """Write `values` to a row; a graph that has saved other rows stays valid, because its version is the same."""
        self.rows.data[self.names[name]] = values

    def add(self, names: Iterable[str]) -> None:
        """Make rows of any values for more bit-widths."""
        before = {name: self[name] for name in self.names}
        order = sorted([*before, *names], key=int, reverse=True)
        self.names = {name: index for index, name in enumerate(order)}
        spare = next(iter(before.values()))
        self.rows = torch.stack([before.get(name, spare) for name in order])
