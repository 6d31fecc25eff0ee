"""Which dimension of a tensor carries the samples: found from two backwards, never from a size."""

from dataclasses import dataclass

import torch

_EXPONENTS = 8  # losses are weighted by powers of two below 2**8, which scale a gradient without rounding
_CLOSE = 1e-5  # what sums in another order may differ by, relative to the largest norm


@dataclass(frozen=True)
class Layout:
    """Samples along dimension `dim`, each `rows` times in a row, or with `minor` once in each of `rows` rounds."""

    dim: int = 0
    rows: int = 1
    minor: bool = False

    def first(self, value: torch.Tensor) -> torch.Tensor:
        """Return (N, ..., rows, ...) of (..., N * rows, ...): the samples first; without the dimension of rows if it is
        1."""
        if not value.dim():
            return value[None]
        if self.rows == 1:
            return value.movedim(self.dim, 0)
        split = (self.rows, -1) if self.minor else (-1, self.rows)
        return value.unflatten(self.dim, split).movedim(self.dim + self.minor, 0)


def loss_weights(samples: int, device) -> torch.Tensor:
    """Return (samples,) float64 powers of two in no order, those of any 8 neighbours different: weights of losses."""
    order = [torch.randperm(_EXPONENTS, generator=torch.Generator().manual_seed(i))
             for i in range(-(-samples // _EXPONENTS))]
    exponents = torch.cat([*order, torch.zeros(0, dtype=torch.int64)])[:samples]
    return torch.pow(2.0, exponents.double()).to(device)


def profile(grad: torch.Tensor, samples: int) -> dict[int, torch.Tensor]:
    """Return {dimension that may hold the samples: norms of its slices, float64} of a gradient; the dimension -1: of
    all."""
    grad = grad.detach()
    found = {d: _norms(grad, d) for d, size in enumerate(grad.shape) if size and size % max(samples, 1) == 0}
    if not grad.dim() and samples == 1:
        found = {0: grad.double().abs()[None]}
    return found or {-1: torch.linalg.vector_norm(grad, dtype=torch.float64)[None]}


def _norms(grad: torch.Tensor, dim: int) -> torch.Tensor:
    others = [other for other in range(grad.dim()) if other != dim]
    return torch.linalg.vector_norm(grad, dim=others, dtype=torch.float64) if others else grad.double().abs()


def is_uninformative(plain: dict[int, torch.Tensor]) -> bool:
    """Return whether any layout would fit a gradient with this profile: no finite value but 0 in it."""
    norms = next(iter(plain.values()))
    return not bool((norms.isfinite() & (norms > 0)).any())


def find_layout(plain, weighted, weights: torch.Tensor) -> Layout | None:
    """Return the layout of a gradient, of which the loss of sample i meets the part of sample i alone.

    Args:
        plain, weighted: profiles of the gradient of the sum of the losses, and of their sum weighted by `weights`.

    None where there is no such dimension: all samples use the tensor alike, or mix in it.
    """
    samples = len(weights)
    if not samples:
        return Layout()
    for dim in sorted(plain.keys() - {-1}):
        a, b, rows = plain[dim], weighted[dim], len(plain[dim]) // samples
        for minor in (False, True) if rows > 1 else (False,):
            factors = weights.repeat(rows) if minor else weights.repeat_interleave(rows)
            if _equal(a * factors, b):
                return Layout(dim, rows, minor)
    return None


def _equal(expected: torch.Tensor, value: torch.Tensor) -> bool:
    finite = expected.isfinite() & value.isfinite()  # of the others no more can be said than that they are not
    expected, value = expected[finite], value[finite]
    return not len(value) or bool(((expected - value).abs() <= _CLOSE * value.max()).all())
