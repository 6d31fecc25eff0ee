"""The training loop: epochs of steps, in a state that can be saved between any two of them."""

import itertools
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from mbq_train import distributed
from mbq_train.quantize.bits import check_bit_widths, switch_bits_of
from mbq_train.quantize.quantizer import quantizers
from mbq_train.quantize.scales import initialise, scales
from mbq_train.training.cuda_graph import GraphedStep
from mbq_train.training.distillation import SoftTargets
from mbq_train.training.divergence import TrainingError, first_bad_layer, first_bad_parameter
from mbq_train.training.optimizers import load_optimizer_tensors, optimizer_tensors, set_rate
from mbq_train.training.scale_rates import ScaleRates
from mbq_train.training.steps import Stepper, one_for_each

from ..data import Data
from ..options import Options
from .interrupt import Interrupted, StopRequest
from .optimizers import build_optimizer, rate_at
from .recipe import Recipe

_LOOK_EVERY = 32  # steps between two looks at the losses on CUDA: each look waits for the device


@dataclass
class State:
    """Where a training is, and what it needs beside the model to go on as if it had not stopped.

    epoch, batch: finished epochs, and finished batches of the next; losses: their sums by bit-width, seconds: the time
    they took; recipe: what it keeps, as JSON; tensors: its own, optimizer, soft targets and random numbers, by name.
    """

    epoch: int = 0
    batch: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    recipe: dict = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class Training:
    """Trains `model` in place; `run` goes on from `state` to the end.

    Args:
        model: what `convert` returned, or a float network with bits (32,); on the device of `data`.
        data: what `load_data` returned.
        bits: bit-widths in the order they are trained within a batch, from high to low; 32 is the float path.
        options: schedule, optimizer, rates and the rest; its data, model and bits are not looked at.
        epochs: how many [options.epochs].
        state: of an earlier Training with the same arguments, to go on from.
        recipe: a Recipe type, or what makes one: what the training does beyond its plain loop.

    Raises:
        ValueError: bits not trained; an option that cannot be had here.
    """

    def __init__(self, model: nn.Module, data: Data, bits, options: Options, *, epochs: int | None = None,
                 state: State | None = None, recipe: type[Recipe] = Recipe):
        self.model, self.data, self.bits, self.options = model, data, tuple(bits), options
        self.epochs = options.epochs if epochs is None else epochs
        check_bit_widths("train", self.bits, float_path=True)
        for b in self.bits:
            switch_bits_of(model, b)
        self.state = State() if state is None else state
        self.recipe = recipe(model, data, self.bits, options, self.epochs)
        steps = [self.recipe.steps(epoch) for epoch in range(self.epochs)]
        self._first_steps = [0, *itertools.accumulate(steps)]  # of every epoch, and after the last
        self.optimizer = build_optimizer(model, options)
        self.scale_rates = None
        if options.scale_rates != "constant" and scales(model):
            self.scale_rates = ScaleRates(self.optimizer, model, mode=options.scale_rates)
        self.soft_targets = None
        if options.distill and len(self.bits) > 1:
            self.soft_targets = SoftTargets(data.train_size, data.classes, largest=options.distill,
                                            epochs=self.epochs, device=data.device)
        self._restore()
        self._prepare_scales()
        self.stepper = stepper_of(options, model, self.bits, self.optimizer, soft_targets=self.soft_targets,
                                  penalty=self.recipe.penalty, bank=self.recipe.bank(),
                                  configuration=self._configuration if options.schedule == "each" else None)
        images = options.batch_size // distributed.world_size()
        self._step = GraphedStep(self.stepper, images) if options.cuda_graph else self.stepper

    @property
    def steps(self) -> int:
        """Return the number of steps of the whole training; in each, every bit-width sees one batch."""
        return self._first_steps[-1]

    def run(self, *, on_epoch=None, on_batch=None, save=None, save_every: float = 300.0,
            stop: StopRequest | None = None) -> None:
        """Train to the end.

        Args:
            on_epoch: called after every epoch with {"epoch", "loss": {bits: mean}, "learning_rate", "seconds",
                "images_per_second"}, what the recipe adds, and with ScaleRates "scales", what `averages` gives.
            on_batch: called after every batch with the epoch from 0, its images so far, and the images of an epoch.
            save: called with a State after every epoch, after `save_every` seconds and before a stop.
            stop: looked at between steps.

        Raises:
            TrainingError: the loss or a parameter is NaN or infinite, with step, bit-width and layer named.
            Interrupted: stop was requested; the state is saved.
        """
        self.model.train()
        saved_at = time.monotonic()
        while self.state.epoch < self.epochs:
            for _ in self._epoch(on_batch):
                due = time.monotonic() - saved_at > save_every
                if self._save_or_stop(save, due, stop):
                    saved_at = time.monotonic()
            self._end_epoch(on_epoch)
            self._save_or_stop(save, True, stop)
            saved_at = time.monotonic()

    def _save_or_stop(self, save, due: bool, stop: StopRequest | None) -> bool:
        """Save where it is due in any process, or one was asked to stop, which is then done in all; whether it was."""
        number = stop.signal or 0 if stop is not None else 0
        number, due = distributed.largest([number, int(due)], self.data.device)
        if save is not None and (number or due):
            self._snapshot()
            save(self.state)
        if number:
            raise Interrupted(number)
        return bool(due)

    def _epoch(self, on_batch):
        """Train the rest of the epoch; yield after every batch whose losses have been looked at."""
        state, options = self.state, self.options
        state.losses = state.losses or dict.fromkeys(self.bits, 0.0)
        if self.soft_targets is not None:
            self.soft_targets.begin_epoch(state.epoch)
        steps, total = self.recipe.steps(state.epoch), self.recipe.images(state.epoch)
        look_every = 1 if self.data.device.type == "cpu" else _LOOK_EVERY
        pending, start = [], time.perf_counter()
        for batches in self.recipe.batches(state.epoch, state.batch):
            step = self._steps_done()
            set_rate(self.optimizer, self._rate(step))
            pending.append(self._take_step(batches, step))
            state.batch += 1
            if len(pending) == look_every or state.batch == steps:
                self._add_losses(pending, batches)
                now = time.perf_counter()
                state.seconds += now - start
                pending, start = [], now
                if on_batch is not None:
                    on_batch(state.epoch, min(state.batch * options.batch_size, total), total)
                yield
                start = time.perf_counter()

    def _rate(self, step: int) -> float:
        return rate_at(self.options, step=step, steps=self.steps)

    def _steps_done(self) -> int:
        return self._first_steps[self.state.epoch] + self.state.batch

    def _configuration(self, bits: int):
        return self.recipe.configuration(self._steps_done(), self.state.epoch, bits)

    def _take_step(self, batches, step: int):
        try:
            return self._step(*batches)
        except TrainingError as error:
            raise TrainingError(f"{error}, at step {step + 1}") from error

    def _add_losses(self, pending, batches) -> None:
        """Add the losses of the latest steps to the epoch's sums, once they are finite; batches: of the last step."""
        for back, losses in enumerate(torch.stack(pending).tolist()):
            for bits, batch, loss in zip(self.bits, one_for_each(batches, self.bits), losses, strict=True):
                if loss != loss or abs(loss) == float("inf"):
                    step = self._steps_done() - len(pending) + back + 1
                    raise TrainingError(f"train: loss must be finite, got {loss} at {bits} bits; it begins in "
                                        f"{first_bad_layer(self.model, batch.images)}, at step {step}")
                self.state.losses[bits] += loss

    def _end_epoch(self, on_epoch) -> None:
        state = self.state
        self._check_parameters()
        if self.soft_targets is not None:
            self.soft_targets.merge()
        images, steps = self.recipe.images(state.epoch), self.recipe.steps(state.epoch)
        record = {"epoch": state.epoch + 1, "loss": {b: total / steps for b, total in state.losses.items()},
                  "learning_rate": self._rate(self._steps_done() - 1), "seconds": state.seconds,
                  "images_per_second": images / max(state.seconds, 1e-9), **self.recipe.end_epoch(state.epoch)}
        if self.scale_rates is not None:
            record["scales"] = self.scale_rates.averages()
        state.epoch, state.batch, state.losses, state.seconds = state.epoch + 1, 0, {}, 0.0
        if on_epoch is not None:
            on_epoch(record)

    def _check_parameters(self) -> None:
        if bad := first_bad_parameter(self.model):
            raise TrainingError(f"train: parameters must be finite, got NaN or infinity in {bad} after step "
                                f"{self._steps_done()}")

    def _snapshot(self) -> None:
        self._check_parameters()
        tensors = {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer, self.model).items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.data.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.data.device)
        if self.soft_targets is not None:
            self.soft_targets.merge()
            tensors["targets.table"] = self.soft_targets.table
        if self.scale_rates is not None:
            tensors |= {f"scale_rates.{name}": value for name, value in self.scale_rates.state_dict().items()}
        recipe_tensors, self.state.recipe = self.recipe.state()
        tensors |= {f"recipe.{name}": value for name, value in recipe_tensors.items()}
        self.state.tensors = tensors

    def _restore(self) -> None:
        tensors = self.state.tensors
        load_optimizer_tensors(self.optimizer, self.model, _named("optimizer.", tensors))
        if distributed.rank() and tensors:  # the numbers saved are the first process's: others draw their own
            torch.manual_seed(self.options.seed + distributed.rank())
        elif "random.cpu" in tensors:
            torch.set_rng_state(tensors["random.cpu"].cpu())
        if "random.cuda" in tensors and not distributed.rank():
            torch.cuda.set_rng_state(tensors["random.cuda"].cpu(), self.data.device)
        if self.soft_targets is not None and "targets.table" in tensors:
            self.soft_targets.table.copy_(tensors["targets.table"])
        if self.scale_rates is not None and tensors:
            self.scale_rates.load_state_dict(_named("scale_rates.", tensors))
        if tensors:
            self.recipe.load_state(_named("recipe.", tensors), self.state.recipe)
        self.state.tensors = {}

    def _prepare_scales(self) -> None:
        if any(quantizer.missing for quantizer in quantizers(self.model)):
            batches = self.data.train_batches(self.options.batch_size, seed=self.options.seed, epoch=0,
                                              rank=distributed.rank(), world=distributed.world_size())
            initialise(self.model, next(batches).images)


def stepper_of(options: Options, model: nn.Module, bits, optimizer: torch.optim.Optimizer, **parts) -> Stepper:
    """Return a Stepper with the schedule, clipping, autocast and compilation that `options` name; parts: its others."""
    return Stepper(model, bits, optimizer, schedule=options.schedule, clip_norm=options.clip_norm,
                   autocast=options.autocast == "bfloat16", compile=options.compile, **parts)


def _named(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
