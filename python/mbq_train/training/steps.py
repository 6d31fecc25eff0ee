"""One training step on a batch: at every bit-width a step, or gradients of all bit-widths and one step."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from .. import distributed
from .._names import look_up
from ..batches import Batch
from ..quantize.bits import switch_bits_of
from ..quantize.scales import clamp_scales, drop_idle_gradients
from .distillation import SoftTargets
from .divergence import TrainingError, first_bad_layer, first_bad_parameter

SCHEDULES = ("each", "accumulate")


class Stepper:
    """Trains `model` on one batch at a time, in the schedule that is asked for.

    each: per bit-width from high to low a forward, a backward and a step (Huang et al., 2025, arXiv 2502.01199, alg.
    A.2). accumulate: the gradients of all bit-widths are added, then one step (alg. A.1).

    Args:
        model: what `convert` returned, or a float network with bits (32,).
        bits: bit-widths from high to low.
        optimizer: over the model's parameters.
        schedule: 'each' or 'accumulate'.
        clip_norm: gradients with a larger norm are scaled to it; 0: never.
        autocast: run the network in bfloat16.
        compile: by torch.compile.
        soft_targets: of self-distillation, or None for the labels.
        penalty: bit-width -> what is added to its loss, or None.
        bank: a WeightBank, or what takes its place, or None.
        configuration: bit-width -> a context that lasts for the step at it, in which layers may have bit-widths of
            their own; with 'each' alone.
    """

    def __init__(self, model: nn.Module, bits, optimizer: torch.optim.Optimizer, *, schedule: str = "each",
                 clip_norm: float = 0.0, autocast: bool = False, compile: bool = False,
                 soft_targets: SoftTargets | None = None, penalty=None, bank=None, configuration=None):
        self.model, self.bits, self.optimizer = model, tuple(bits), optimizer
        look_up("Stepper", dict.fromkeys(SCHEDULES), schedule, argument="schedule")
        self.schedule, self.clip_norm, self.autocast, self.compile = schedule, clip_norm, autocast, compile
        self.soft_targets, self.penalty, self.bank = soft_targets, penalty, bank
        self.configuration = configuration
        if configuration is not None and schedule != "each":
            raise ValueError(f"Stepper: schedule must be each with a configuration of layers, got {schedule!r}")
        self.forward = torch.compile(model) if compile else model

    def __call__(self, *batches: Batch) -> torch.Tensor:
        """Train on one batch at all bit-widths, or on one for each; the losses by bit-width, (K,) float32, detached.

        Raises TrainingError, naming bit-width and layer, where the loss or a gradient is not finite, before the step is
        taken; on CUDA the loss is NaN then and the caller must look, because a step does not wait for the device.
        """
        targets = [self.soft_targets.targets(batch) if self.soft_targets else batch.labels for batch in batches]
        work = list(zip(self.bits, *(one_for_each(values, self.bits) for values in (batches, targets)), strict=True))
        if self.schedule == "accumulate":
            return torch.stack(self._step_on(work))
        return torch.stack([loss for part in work for loss in self._step_at(part)])

    def _step_at(self, part) -> list[torch.Tensor]:
        with contextlib.nullcontext() if self.configuration is None else self.configuration(part[0]):
            return self._step_on([part])

    def _step_on(self, group) -> list[torch.Tensor]:
        """Add the gradients of all (bits, batch, targets) in `group` and step once; their losses."""
        bits = [b for b, _, _ in group]
        self.optimizer.zero_grad(set_to_none=True)  # None, not 0: the scales of other bit-widths must not move
        with self._filled_bank():
            losses = [self._backward_at(*part) for part in group]
        distributed.average_gradients(self.model)
        drop_idle_gradients(self.model, bits)
        norm = self._check_gradients(bits)
        self.optimizer.step()
        clamp_scales(self.model)  # a scale far below its floor would take as many steps to come back
        return [torch.where(norm.isfinite(), loss, torch.nan) for loss in losses]

    def _check_gradients(self, bits) -> torch.Tensor:
        """Clip the gradients where clip_norm says so; their norm before."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for _, parameter in named])
        if norm.device.type == "cpu" and not norm.isfinite():
            bad = next((name for name, p in named if not torch.isfinite(p.grad).all()), "their norm")
            raise TrainingError(f"train: gradients must be finite, got {norm.item()} at "
                                f"{', '.join(map(str, bits))} bits; NaN or infinity is in that of {bad}")
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_([parameter for _, parameter in named], self.clip_norm, norm)
        return norm

    @contextlib.contextmanager
    def _filled_bank(self):
        if self.bank is None:
            yield
            return
        try:
            with self._bad_parameters_named(), self._autocast_region():
                self.bank.fill()
            yield
            self.bank.backward()
        finally:
            self.bank.drop()

    def _backward_at(self, bits: int, batch: Batch, targets) -> torch.Tensor:
        switch_bits_of(self.model, bits)
        with self._bad_parameters_named(), self._autocast_region(), self._compile_region():
            logits = self.forward(batch.images)
        loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            raise TrainingError(f"train: loss must be finite, got {loss.item()} at {bits} bits; it begins in "
                                f"{first_bad_layer(self.model, batch.images)}")
        if self.soft_targets and bits == self.bits[0]:
            self.soft_targets.remember(batch, logits.detach())
        penalty = self.penalty(bits) if self.penalty else None
        (loss if penalty is None else loss + penalty).backward()
        return distributed.mean(loss.detach())

    @contextlib.contextmanager
    def _bad_parameters_named(self):
        """Name the parameter that is bad inside the block: a quantizer refuses a scale that is NaN, before there is a
        loss."""
        try:
            yield
        except RuntimeError as error:
            if (name := first_bad_parameter(self.model)) is None:
                raise
            raise TrainingError(f"train: parameters must be finite, got NaN or infinity in {name} ({error})") from error

    def _autocast_region(self):
        # Without the cache of casts: a step changes the weights, and a captured graph must cast by itself.
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.autocast, cache_enabled=False)

    def _compile_region(self):
        if not self.compile:
            return contextlib.nullcontext()
        # A BatchNorm per bit-width is a graph per bit-width, for whole batches and for the last one.
        return torch._dynamo.config.patch(recompile_limit=4 * len(self.bits) + 8)


def one_for_each(values, bits) -> tuple:
    """Return `values`, one for each of `bits`: a single one is that of all."""
    return tuple(values) * len(bits) if len(values) == 1 else tuple(values)
