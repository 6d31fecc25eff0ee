"""Recipe: the places where a training method changes the plain loop."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mbq_train import distributed
from mbq_train.batches import Batch
from mbq_train.quantize.bits import bit_states
from mbq_train.quantize.weight_bank import WeightBank

from ..data import Data
from ..options import Options


class Recipe:
    """The plain loop, and the base of every other recipe, which changes what it needs to.

    Every batch is trained at every bit-width; nothing is added to the loss, done after an epoch or kept. One object
    serves one phase of a run; its options and the defaults it has for others are in Options.

    Args:
        model: what is trained.
        data: what `load_data` returned.
        bits: bit-widths in the order they are trained in, from high to low.
        options: of the run.
        epochs: of this phase.
        folder: of the run, for what the recipe measures; None for nowhere.
        on_probe: called while it measures before the first step, with how much is done and how much at most.
    """

    def __init__(self, model: nn.Module, data: Data, bits, options: Options, epochs: int, *,
                 folder: Path | None = None, on_probe=None):
        self.model, self.data, self.bits, self.options, self.epochs = model, data, tuple(bits), options, epochs
        self.folder, self.on_probe = folder, on_probe

    def check(self) -> None:
        """Raise ValueError for a network that the recipe will refuse in the middle of a training. Called before
        anything is trained, with first values missing; must not change the network."""

    def bank(self) -> WeightBank | None:
        """Return what quantizes all weights before the forwards of a step, if anything does: its `fill` is called
        before them, `backward` after the losses' backward, then `drop`. Called once, where the training stands before
        its first step."""
        wanted = self.options.weight_bank and bit_states(self.model)
        return WeightBank(self.model, self.bits) if wanted else None

    def images(self, epoch: int) -> int:
        """Return how many training images every bit-width sees in epoch `epoch`, from 0; known before the training
        begins."""
        return self.data.train_size

    def steps(self, epoch: int) -> int:
        """Return batches of epoch `epoch`."""
        return self.data.steps(self.options.batch_size, images=self.images(epoch), world=distributed.world_size())

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, ...]]:
        """Return what the steps of an epoch train on, from step `start` on: one batch for all bit-widths, or one for
        each.

        A pure function of its arguments and of what the recipe keeps in `state`.
        """
        return zip(self._batches(epoch, start))

    def penalty(self, bits: int) -> torch.Tensor | None:
        """Return a scalar to add to the loss of a step at `bits` bits, differentiable; None for nothing. The losses
        that the metrics show are without it."""
        return None

    def configuration(self, step: int, epoch: int, bits: int) -> contextlib.AbstractContextManager:
        """Return a context for the step at `bits` bits of batch `step` of the training, in which layers may have
        bit-widths of their own; all are at `bits` after it. Not called with schedule 'accumulate'.

        A pure function of its arguments and of what the recipe keeps in `state`.
        """
        return contextlib.nullcontext()

    def end_epoch(self, epoch: int) -> dict:
        """Called once after the last step of an epoch, by every process; what it returns goes into the metrics."""
        return {}

    def summary(self) -> dict:
        """Return what the result of a run says of the recipe, as a JSON object."""
        return {}

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """Return what a checkpoint must hold so that the recipe goes on exactly: tensors by name, and a JSON object."""
        return {}, {}

    def load_state(self, tensors: dict[str, torch.Tensor], values: dict) -> None:
        """Stand where `state` was taken; in a run that begins it is not called."""

    def _batches(self, epoch: int, start: int, rows: torch.Tensor | None = None) -> Iterator[Batch]:
        """Return this process's batches of an epoch over the training images `rows` [all]."""
        return self.data.train_batches(self.options.batch_size, seed=self.options.seed, epoch=epoch, start=start,
                                       rows=rows, rank=distributed.rank(), world=distributed.world_size())
