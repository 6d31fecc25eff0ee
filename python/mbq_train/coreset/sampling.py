"""Which images an epoch trains on: drawn from scores, the same ones for the same seed and epoch."""

import torch
from torch.utils.data import Sampler

from .._names import look_up
from ..batches import seeded

SAMPLINGS = ("probability", "top-k", "random", "balanced")
_BELOW = 100  # more than Gumbel numbers from float64 differ by: images with score 0 come after all others


def coreset_size(images: int, prune_rate: float, *, batch_size: int) -> int:
    """Return how many of `images` are left after pruning. Raises ValueError for a rate outside of [0, 1), and where
    less than a batch is left."""
    if not 0 <= prune_rate < 1:
        raise ValueError(f"coreset_size: prune_rate must be in [0, 1), got {prune_rate}")
    size = round((1 - prune_rate) * images)
    if size < batch_size:
        raise ValueError(f"coreset_size: prune_rate must leave a batch of {batch_size} images, got {prune_rate}, which "
                         f"leaves {size} of {images}")
    return size


def draw_rows(scores: torch.Tensor, count: int, generator: torch.Generator, *, sampling: str = "probability",
              temperature: float = 1.0, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Return `count` different images out of len(scores), (count,) int64 in ascending order.

    Args:
        scores: (N,) floating point, >= 0; NaN and infinities are refused.
        count: how many, 1..N.
        generator: on the CPU.
        sampling: 'probability', one after the other with probability proportional to score^(1 / temperature), those
            with score 0 when no others are left; 'top-k', the highest (of equal ones the first); 'random', all alike;
            'balanced', by probability with as many of every class as its share.
        temperature: > 0; large ones make all images alike.
        labels: (N,) int64, for 'balanced'.

    Raises ValueError for an argument out of range, naming the images with bad scores.
    """
    look_up("draw_rows", dict.fromkeys(SAMPLINGS), sampling, argument="sampling")
    if not 1 <= count <= len(scores):
        raise ValueError(f"draw_rows: count must be in 1..{len(scores)}, got {count}")
    if not temperature > 0:
        raise ValueError(f"draw_rows: temperature must be above 0, got {temperature}")
    check_scores(scores)
    if sampling == "top-k":
        return scores.argsort(descending=True, stable=True)[:count].sort().values
    noise = torch.rand(len(scores), generator=generator, dtype=torch.float64)
    keys = -(-noise.log()).log()  # Gumbel: the largest of log(weight) + Gumbel are drawn by weight, without replacement
    if sampling != "random" and scores.max() > 0:
        logs = (scores.double() / scores.max()).log() / temperature
        keys = keys + logs.clamp_min(logs[scores > 0].min() - _BELOW)
    if sampling != "balanced":
        return keys.topk(count).indices.sort().values
    if labels is None:
        raise ValueError("draw_rows: labels must be given with sampling 'balanced', got None")
    if labels.shape != scores.shape:
        raise ValueError(f"draw_rows: labels must have the shape of scores, {tuple(scores.shape)}, "
                         f"got {tuple(labels.shape)}")
    return _best_of_classes(keys, labels, count)


def check_scores(scores: torch.Tensor) -> None:
    """Raise ValueError, naming the first of them, where scores are NaN, infinite or negative."""
    bad = (~(scores >= 0) | scores.isinf()).nonzero().flatten().tolist()
    if bad:
        shown = ", ".join(f"{row} ({scores[row].item()})" for row in bad[:3])
        raise ValueError(f"draw_rows: scores must be finite and at least 0, got others for {len(bad)} images: {shown}"
                         f"{', ...' if len(bad) > 3 else ''}")


def _best_of_classes(keys, labels, count: int) -> torch.Tensor:
    """Return the rows with the largest keys of every class, each by its share; what rounding leaves goes by the rest.
    """
    sizes = labels.bincount()
    exact = sizes.double() * count / len(labels)
    quota = exact.floor().long()
    rest = (exact - quota).argsort(descending=True, stable=True)[:count - int(quota.sum())]
    quota[rest] += 1
    order = keys.argsort(descending=True, stable=True)
    return torch.cat([order[labels[order] == c][:n] for c, n in enumerate(quota.tolist())]).sort().values


class CoresetSampler(Sampler[int]):
    """Rows of a pruned training set, drawn anew in every epoch or once: for a DataLoader, or `rows` for train_batches.

    Every process draws the same rows and takes its part; a last row too many for some of them is left out.

    Args:
        scores: (N,), as for draw_rows; with sampling 'random' they only say how many images there are.
        prune_rate: share of the images that an epoch leaves out, [0, 1).
        sampling, temperature, labels: as for draw_rows.
        seed: with the epoch it decides all.
        resample: draw in every epoch [else once].
        key: of several samplers with one seed, which one this is.
        rank, world: this process and how many there are.
        batch_size: what must be left at least.
    """

    def __init__(self, scores: torch.Tensor, *, prune_rate: float, sampling: str = "probability",
                 temperature: float = 1.0, labels: torch.Tensor | None = None, seed: int = 0, resample: bool = True,
                 key: int = 0, rank: int = 0, world: int = 1, batch_size: int = 1):
        self.scores, self.labels, self.seed, self.key, self.resample = scores, labels, seed, key, resample
        self.options = {"sampling": sampling, "temperature": temperature}
        self.size = coreset_size(len(scores), prune_rate, batch_size=batch_size)
        self.epoch, self.rank, self.world = 0, rank, world
        self.rows(0)  # an error now

    def rows(self, epoch: int) -> torch.Tensor:
        """Return (size,) int64 in ascending order: what all processes together train on in `epoch`."""
        generator = seeded("coreset", self.seed, self.key, epoch if self.resample else 0)
        return draw_rows(self.scores, self.size, generator, labels=self.labels, **self.options)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the iterations that follow, as of torch's DistributedSampler."""
        self.epoch = epoch

    def __iter__(self):
        rows = self.rows(self.epoch)
        order = torch.randperm(len(rows), generator=seeded("coreset order", self.seed, self.key, self.epoch))
        return iter(rows[order][:len(self) * self.world][self.rank::self.world].tolist())

    def __len__(self) -> int:
        return self.size // self.world
