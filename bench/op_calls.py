"""Call any op of tests/manifest with the inputs of its entry, and its backward pass."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from manifest import MANIFEST  # noqa: E402
from manifest.entry import FLOATS  # noqa: E402

__all__ = ["FLOATS", "MANIFEST", "outputs_and_gradients"]


def outputs_and_gradients(op, inputs, **options) -> list[torch.Tensor]:
    """Return all tensors that come out of op.call(*inputs, **options) and of its backward pass."""
    graded = [x for x in inputs if x.requires_grad]
    outputs = op.call(*inputs, **options)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    sums = [y for y in outputs if y.requires_grad]
    upstream = [torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y).to(y.dtype) for y in sums]
    return [*outputs, *(torch.autograd.grad(sums, graded, upstream) if sums else ())]
