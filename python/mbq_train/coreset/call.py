"""One call of a layer, and the gradients of its parameters for every sample."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from .gradient_forms import form_of
from .layouts import Layout


@dataclass(eq=False)
class Call:
    """One call of a layer: what its parameters met, the version of that tensor, how many parameters still need it,
    whether the tensor was made of the network's inputs, and the gradient and its layout once they are there."""

    layer: nn.Module
    x: torch.Tensor | None
    version: int
    needed: int
    from_inputs: bool
    grad: torch.Tensor | None = None
    layout: Layout = Layout()

    def used(self) -> None:
        """Count one parameter as done; after the last, let the tensors go, because the graph holds this object until
        the backward ends."""
        self.needed -= 1
        if not self.needed:
            self.x = self.grad = None


def bias_gradients(call: Call) -> torch.Tensor:
    """Return (N, C) of a bias."""
    return _added(call, form_of(call.layer).biases(call.layer, call.grad))


def norm_gradients(call: Call) -> torch.Tensor:
    """Return (N, C) of a normalisation's weight."""
    return _added(call, form_of(call.layer).weights(call.layer, call.x, call.grad))


def _added(call: Call, rows):
    """Return (N, C) of (N * rows, C): the sums over the rows of a sample."""
    return rows if call.layout.rows == 1 else call.layout.first(rows).sum(dim=1)


def matrices_of(call: Call):
    """Return what a form's `matrices` returns, with all rows of a sample along T."""
    pair = form_of(call.layer).matrices(call.layer, call.x, call.grad)
    if call.layout.rows == 1:
        return pair
    layout = replace(call.layout, dim=1)
    return tuple(layout.first(side).movedim(0, 1).flatten(2, 3) for side in pair)
