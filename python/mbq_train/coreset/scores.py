"""Scores of all training images, one for every bit-width: how much a network still has to learn from each."""

import contextlib

import torch
from torch import nn

import mbq_kernels

from .. import distributed
from .._names import look_up
from ..conversion.call_order import call_order
from ..data import Data
from ..quantize.bits import in_mode, switch_bits_of
from .grad_norm import GradNormScorer
from .layer_norms import scored_layers

SCORES = ("grand", "last_layer", "el2n", "tdds")
GRADIENT_SCORES = SCORES[:2]
_WINDOW, _DECAY = 10, 0.9  # of TDDS


def score_images(model: nn.Module, data: Data, bits, *, score: str = "grand", batch_size: int = 256,
                 autocast: bool = False) -> dict[int, torch.Tensor]:
    """Return a score for every training image at each of `bits`, of `model` as it stands, in eval mode, without
    augmentation.

    grand: norm of the loss's gradient in all parameters, the float weights behind quantized ones (GradNormScorer);
    last_layer: in those of the last layer; el2n: norm of softmax - onehot (Paul et al., 2021, arXiv 2107.07075).

    Args:
        model: what `convert` returned, or a float network for bits (32,).
        data: what `load_data` returned. In several processes each scores its part.
        bits: trained bit-widths, 32 for the float path.
        score: grand, last_layer or el2n; TddsScores makes the fourth kind.
        batch_size: images at once.
        autocast: run the network in bfloat16.

    Returns {bits: (train_size,) float32 on the CPU}, the same in every process.
    """
    look_up("score_images", dict.fromkeys(SCORES[:3]), score, argument="score")
    scorer = None if score == "el2n" else scorer_of(model, data, score)

    def rows(batch):
        if scorer is not None:
            return scorer(batch.images, batch.labels).total
        return mbq_kernels.el2n(model(batch.images), batch.labels)

    return _of_all(model, data, bits, rows, batch_size, autocast)


class TddsScores:
    """Scores from how an image's prediction moves over the epochs: Temporal Dual-Depth Scoring, for every bit-width.

    d_t = |sum_c p_t log(p_t / p_(t-1))|; R_t = deviation of d over the last 10 epochs, times the root of their number;
    score = 0.9 R_t + 0.1 score (Zhang et al., 2024, arXiv 2311.13613; the two constants of its public code).

    `update` after every epoch; `scores` needs three of them. Holds images x classes half floats for each bit-width.
    """

    def __init__(self):
        self.tables: dict[str, torch.Tensor] = {}  # what a checkpoint keeps

    def update(self, model: nn.Module, data: Data, bits, **options) -> None:
        """Look at the predictions of `model` for all training images; arguments as of score_images."""
        def rows(batch):
            return model(batch.images).float().log_softmax(dim=1)

        for b, now in _of_all(model, data, bits, rows, options["batch_size"], options["autocast"]).items():
            before = self.tables.get(f"{b}.log")
            if before is not None:
                moved = (now.exp() * (now - before.float())).sum(dim=1).abs()
                window = torch.cat([self.tables.get(f"{b}.moved", moved[:0].reshape(0, len(moved))), moved[None]])
                self.tables[f"{b}.moved"] = window = window[-_WINDOW:]
                if len(window) > 1:
                    spread = (window - window.mean(dim=0)).norm(dim=0)
                    score = self.tables.get(f"{b}.score")
                    self.tables[f"{b}.score"] = spread if score is None else _DECAY * spread + (1 - _DECAY) * score
            self.tables[f"{b}.log"] = now.clamp_min(-60).half()

    def scores(self, bits) -> dict[int, torch.Tensor]:
        """Return {bits: (train_size,)}. Raises ValueError before the third update."""
        if f"{bits[0]}.score" not in self.tables:
            raise ValueError("TddsScores: at least 3 epochs must have been seen, got fewer")
        return {b: self.tables[f"{b}.score"] for b in bits}


def averaged(scores: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Return one score for all bit-widths: the mean of theirs, each brought to mean 1 (our choice)."""
    whole = torch.stack([score / score.mean().clamp_min(torch.finfo(score.dtype).tiny) for score in scores.values()])
    return dict.fromkeys(scores, whole.mean(dim=0))


def scorer_of(model, data: Data, score: str) -> GradNormScorer:
    """Return what computes a score of GRADIENT_SCORES."""
    if score == "grand":
        return GradNormScorer(model, weights="latent")
    example = next(data.test_batches(1)).images
    layers = {name: layer for layer, name in scored_layers(model).items()}
    return GradNormScorer(model, weights="latent", layers=call_order(model, layers, example)[-1:])


@torch.no_grad()
def _of_all(model, data: Data, bits, rows_of, batch_size: int, autocast: bool) -> dict[int, torch.Tensor]:
    """Return rows_of(batch), (n, ...), of all training images at every bit-width."""
    out = {}
    distributed.share_from_first(model)  # each process has its own running statistics
    region = torch.autocast(data.device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
    with in_mode(model, training=False), region:
        for b in bits:
            switch_bits_of(model, b)
            found, values = [], []
            for batch in data.still_batches(batch_size, rank=distributed.rank(), world=distributed.world_size()):
                found.append(batch.rows)
                values.append(rows_of(batch).detach().float())
            out[b] = _gathered(found, values, data).cpu()
    return out


def _gathered(found, values, data: Data) -> torch.Tensor:
    """Return the rows of all processes in their places."""
    shape = values[0].shape[1:] if values else ()
    table = torch.zeros(data.train_size, *shape, device=data.device)
    if values:
        table[torch.cat(found).to(data.device)] = torch.cat(values)
    return distributed.total(table)
