"""Scores of all training images, one for every bit-width: how much a network still has to learn from each."""

import contextlib
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

import mbq_kernels

from .. import distributed
from .._names import look_up
from ..conversion.call_order import call_order
from ..quantize.bits import in_mode, switch_bits_of
from .grad_norm import GradNormScorer
from .gradient_forms import scored_layers

SCORES = ("grand", "last_layer", "el2n", "tdds")
GRADIENT_SCORES = SCORES[:2]
_WINDOW, _NEWEST = 10, 0.9  # of TDDS: epochs, and the share of the latest of them in a score


def score_images(model: nn.Module, batches: Iterable, bits, *, score: str = "grand",
                 autocast: bool = False) -> dict[int, torch.Tensor]:
    """Return a score for every training image at each of `bits`, of `model` as it stands, in eval mode.

    grand: norm of the loss's gradient in all parameters, the float weights behind quantized ones (GradNormScorer);
    last_layer: in those of the last layer; el2n: norm of softmax - onehot (Paul et al., 2021, arXiv 2107.07075).

    Args:
        model: what `convert` returned, or a float network for bits (32,).
        batches: the training images once, not augmented: (images, labels) pairs in the order of the set, such as those
            of a DataLoader that does not shuffle, or Batch objects, whose rows say which images they hold. They are
            read once. In several processes each scores Batch objects of its own.
        bits: trained bit-widths, 32 for the float path.
        score: grand, last_layer or el2n; TddsScores makes the fourth kind.
        autocast: run the network in bfloat16.

    Returns {bits: (N,) float32 on the CPU}, the same in every process. Raises TypeError for batches that are none of
    these, ValueError for no batches, for rows that are not 0..N-1, and for pairs without rows from a DataLoader that
    shuffles, samples or drops images, or in several processes.
    """
    look_up("score_images", dict.fromkeys(SCORES[:3]), score, argument="score")
    scorer = None

    def rows(images, labels):
        nonlocal scorer
        if score == "el2n":
            return mbq_kernels.el2n(model(images), labels)
        scorer = scorer or scorer_of(model, images[:1], score)
        return scorer(images, labels).total

    return _of_all("score_images", model, batches, bits, rows, autocast)


class TddsScores:
    """Scores from how an image's prediction moves over the epochs: Temporal Dual-Depth Scoring, for every bit-width.

    d_t = |sum_c p_t log(p_t / p_(t-1))|; R_t = deviation of d over the last 10 epochs, times the root of their number;
    score = 0.9 R_t + 0.1 score (Zhang et al., 2024, arXiv 2311.13613; the two constants of its public code).

    `update` after every epoch; `scores` needs three of them. Holds images x classes half floats for each bit-width.
    """

    def __init__(self):
        self.tables: dict[str, torch.Tensor] = {}  # what a checkpoint keeps

    def update(self, model: nn.Module, batches: Iterable, bits, *, autocast: bool = False) -> None:
        """Look at the predictions of `model` for all training images; arguments as of score_images."""
        def rows(images, labels):
            return model(images).float().log_softmax(dim=1)

        for b, now in _of_all("TddsScores", model, batches, bits, rows, autocast).items():
            before = self.tables.get(f"{b}.log")
            if before is not None:
                moved = (now.exp() * (now - before.float())).sum(dim=1).abs()
                window = torch.cat([self.tables.get(f"{b}.moved", moved[:0].reshape(0, len(moved))), moved[None]])
                self.tables[f"{b}.moved"] = window = window[-_WINDOW:]
                if len(window) > 1:
                    spread = (window - window.mean(dim=0)).norm(dim=0)
                    score = self.tables.get(f"{b}.score")
                    self.tables[f"{b}.score"] = spread if score is None else _NEWEST * spread + (1 - _NEWEST) * score
            self.tables[f"{b}.log"] = now.clamp_min(-60).half()

    def scores(self, bits) -> dict[int, torch.Tensor]:
        """Return {bits: (N,)}. Raises ValueError before the third update."""
        if f"{bits[0]}.score" not in self.tables:
            raise ValueError("TddsScores: at least 3 epochs must have been seen, got fewer")
        return {b: self.tables[f"{b}.score"] for b in bits}


def averaged(scores: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Return one score for all bit-widths: the mean of theirs, each brought to mean 1 (our choice)."""
    whole = torch.stack([score / score.mean().clamp_min(torch.finfo(score.dtype).tiny) for score in scores.values()])
    return dict.fromkeys(scores, whole.mean(dim=0))


def scorer_of(model: nn.Module, example: torch.Tensor, score: str) -> GradNormScorer:
    """Return what computes a score of GRADIENT_SCORES; example: images to find the last layer with."""
    if score == "grand":
        return GradNormScorer(model, weights="latent")
    layers = {name: layer for layer, name in scored_layers(model).items()}
    return GradNormScorer(model, weights="latent", layers=call_order(model, layers, example)[-1:])


@torch.no_grad()
def _of_all(function: str, model: nn.Module, batches, bits, rows_of, autocast: bool) -> dict[int, torch.Tensor]:
    """Return rows_of(images, labels), (N, ...), of all training images at every bit-width."""
    if isinstance(bits, (str, int)) or not hasattr(bits, "__iter__"):
        raise TypeError(f"{function}: bits must be a sequence of integers, got {bits!r}")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found, values, seen = [], {b: [] for b in bits}, 0
    distributed.share_from_first(model)  # each process has its own running statistics
    region = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
    with in_mode(model, training=False), region:
        for batch in batches:
            images, labels, *rest = _parts(function, batch)
            found.append(_rows(function, rest, batches, seen, len(labels)))
            seen += len(labels)
            images, labels = images.to(device), labels.to(device)
            for b in values:
                switch_bits_of(model, b)
                values[b].append(rows_of(images, labels).detach().float())
    rows = torch.cat(found).to(device) if found else torch.zeros(0, dtype=torch.int64, device=device)
    _check_rows(function, rows)
    return {b: _gathered(rows, parts).cpu() for b, parts in values.items()}


def _check_rows(function: str, rows: torch.Tensor) -> None:
    """Raise ValueError unless the rows of all processes are 0..N-1, each of them once."""
    size = _size(rows)
    if not size:
        raise ValueError(f"{function}: batches must hold images, got none")
    past = distributed.largest([int(((rows < 0) | (rows >= size)).sum())], rows.device)[0]
    if past or (distributed.total(rows.clamp_max(size - 1).bincount(minlength=size)) != 1).any():
        raise ValueError(f"{function}: batches must hold every image of the set once, got other rows for {size} images")


def _size(rows: torch.Tensor) -> int:
    """Return the number of rows of all processes."""
    return int(distributed.total(torch.tensor(len(rows), device=rows.device)))


def _parts(function: str, batch) -> list[torch.Tensor]:
    """Return images, labels and, where a batch has them, rows."""
    parts = list(batch[:3]) if isinstance(batch, (tuple, list)) else []
    alike = all(isinstance(part, torch.Tensor) and part.dim() and len(part) == len(parts[0]) for part in parts)
    if len(parts) < 2 or not alike or (len(parts) == 3 and (parts[2].dim() > 1 or parts[2].is_floating_point())):
        got = [f"{part.dtype} {tuple(part.shape)}" if isinstance(part, torch.Tensor) else type(part).__name__
               for part in parts] or type(batch).__name__
        raise TypeError(f"{function}: batches must give images and labels, and integer rows where there are any, as "
                        f"tensors of one length, got {got}")
    return parts


def _rows(function: str, rest: list, batches, before: int, images: int) -> torch.Tensor:
    """Return which images of the set a batch holds: what it says, or those that follow the `before` already seen."""
    if rest:
        return rest[0].cpu()
    if distributed.world_size() > 1:
        raise ValueError(f"{function}: batches must be Batch objects with rows in several processes, got pairs")
    if isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset) and (
            batches.drop_last or not isinstance(batches.sampler, SequentialSampler)):
        raise ValueError(f"{function}: batches must hold all images in the order of the set, got pairs of a DataLoader "
                         f"with {'drop_last' if batches.drop_last else type(batches.sampler).__name__}")
    return torch.arange(before, before + images)


def _gathered(rows: torch.Tensor, values: list[torch.Tensor]) -> torch.Tensor:
    """Return the values of all processes, (N,) or (N, C), in the places that rows name."""
    columns = distributed.largest([values[0].shape[1] if values and values[0].dim() > 1 else 0], rows.device)[0]
    table = torch.zeros((_size(rows), columns) if columns else _size(rows), device=rows.device)
    if values:
        table[rows] = torch.cat(values)
    return distributed.total(table)
