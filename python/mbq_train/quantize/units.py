"""Scales in units of their first value: what makes one learning rate fit them and the weights alike.

The first value of a scale is some 1e-4 to 1e-1. Adam moves any parameter by about the learning rate a step, so that at
1e-3 a scale of 1e-3 would be anywhere after a few steps, and below 0 soon. The Parameter therefore is the scale
over a unit of STEPS_OF_FIRST times its first value, and the kernels multiply it by the unit; a step of SGD moves the
scale as it would a Parameter that is the scale itself, because they divide the gradient by the unit.
"""

import torch
from torch import nn

STEPS_OF_FIRST = 8.0  # a power of two, so that the first value is exact; measured: see docs of parameter_groups
FLOOR = 2.0**-6  # of the first value: at 8 bits the best scale of usual weights and activations lies above 1/8


def least_scale(first: torch.Tensor) -> torch.Tensor:
    """Return the floor of a scale whose first value is `first`."""
    return first.abs() * FLOOR


class Buffers(nn.Module):
    """Hold buffers by name, as nn.ParameterDict holds Parameters."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            self[name] = tensor

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self.register_buffer(name, tensor)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._buffers[name]

    def __len__(self) -> int:
        return len(self._buffers)
