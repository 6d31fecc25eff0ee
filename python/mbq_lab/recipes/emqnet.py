"""EMQNet: every bit-width trains on its own coreset, drawn by what each image still has to teach it."""

import time

import torch

from mbq_train import distributed
from mbq_train._errors import first_line
from mbq_train.coreset.sampling import CoresetSampler, coreset_size
from mbq_train.coreset.scores import GRADIENT_SCORES, TddsScores, averaged, score_images, scorer_of
from mbq_train.quantize.bits import FLOAT, in_mode, switch_bits_of

from ..training.recipe import Recipe


class EmqNet(Recipe):
    """Phase 1: `score_epochs` on all images, then a score of every image at every bit-width. Phase 2: every bit-width
    draws (1 - prune_rate) of the images in each epoch, by its own scores, and trains on those alone.

    Options: prune_rate, score, score_epochs, sampling, temperature, resample, rescore_every, shared_scores. Its other
    parts are options of their own, with these defaults: Any-Precision quantizers with weight correction, one BatchNorm
    for all bit-widths. Score and sampling are not published in what could be read: all of the options are our choice.

    Reference: Kim et al., 2025, arXiv 2510.20673.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        options = self.options
        self.size = coreset_size(self.data.train_size, options.prune_rate, batch_size=options.batch_size)
        self.scores = {b: torch.ones(self.data.train_size) for b in self.bits}
        self.tdds = TddsScores()
        self._make_samplers()

    def check(self):
        """Score a few images by the float path, whose layers are those of every bit-width."""
        options = self.options
        if options.sampling == "random" or options.score not in GRADIENT_SCORES:
            return
        batch = next(self.data.test_batches(min(4, self.data.test_size)))
        try:
            with in_mode(self.model, training=False):
                switch_bits_of(self.model, FLOAT)
                scorer_of(self.model, batch.images[:1], options.score)(batch.images, batch.labels)
        except Exception as error:  # of the scorer, or whatever a network raises when it is called otherwise
            raise ValueError(f"train: score must be one that the network allows, got {options.score!r} "
                             f"({first_line(error)}); el2n and tdds need its outputs alone") from error

    def images(self, epoch):
        return self.data.train_size if epoch < self.options.score_epochs else self.size

    def batches(self, epoch, start):
        if epoch < self.options.score_epochs:
            return super().batches(epoch, start)
        return zip(*(self._batches(epoch, start, sampler.rows(epoch)) for sampler in self.samplers), strict=True)

    def end_epoch(self, epoch):
        """Score where it is time to: {"scoring_seconds", "scores": {bits: {"mean", "largest"}}}."""
        options, start = self.options, time.perf_counter()
        due = self._due(epoch + 1)
        if options.sampling == "random" or not (due or options.score == "tdds"):
            return {}
        autocast = options.autocast == "bfloat16"
        if options.score == "tdds":
            self.tdds.update(self.model, self._still_batches(), self.bits, autocast=autocast)
        if due:
            scores = (self.tdds.scores(self.bits) if options.score == "tdds" else
                      score_images(self.model, self._still_batches(), self.bits, score=options.score,
                                   autocast=autocast))
            self.scores = averaged(scores) if options.shared_scores else scores
            self._make_samplers()
        seconds = {"scoring_seconds": time.perf_counter() - start}
        return seconds | {"scores": self._summary()} if due else seconds

    def state(self):
        tensors = {f"scores.{b}": score for b, score in self.scores.items()}
        return tensors | {f"tdds.{name}": table for name, table in self.tdds.tables.items()}, {}

    def load_state(self, tensors, values):
        self.scores = {b: tensors[f"scores.{b}"] for b in self.bits}
        self.tdds.tables = {name.removeprefix("tdds."): table for name, table in tensors.items()
                            if name.startswith("tdds.")}
        self._make_samplers()

    def _still_batches(self):
        """Yield this process's part of the training images, not augmented."""
        return self.data.still_batches(self.options.batch_size, rank=distributed.rank(), world=distributed.world_size())

    def _due(self, done: int) -> bool:
        """Return whether there are new scores after `done` epochs."""
        since, every = done - self.options.score_epochs, self.options.rescore_every
        return since == 0 or (every > 0 and since > 0 and since % every == 0 and done < self.epochs)

    def _make_samplers(self) -> None:
        options = self.options
        self.samplers = [CoresetSampler(
            self.scores[b], prune_rate=options.prune_rate, sampling=options.sampling, temperature=options.temperature,
            labels=self.data.train_labels, seed=options.seed, resample=options.resample, key=b) for b in self.bits]

    def _summary(self) -> dict:
        return {b: {"mean": score.mean().item(), "largest": score.max().item()} for b, score in self.scores.items()}
