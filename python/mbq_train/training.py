"""The training loop: every batch at every bit-width, from high to low, with a step after each."""

import math
import time

import torch
import torch.nn.functional as F
from torch import nn

from .bits import FLOAT, bit_states, eval_mode, set_bits
from .data import Data, batches
from .quantizers import clamp_scales, quantizers


class TrainingError(RuntimeError):
    """The loss or a parameter became NaN or infinite."""


def train(model: nn.Module, data: Data, bits, *, epochs: int, batch_size: int, learning_rate: float,
          weight_decay: float, seed: int = 0, on_epoch=None) -> None:
    """Train `model` in place: per batch and bit-width a forward, a backward and a step.

    Huang et al., 2025, arXiv 2502.01199, alg. A.2, without its learning rates per scale. AdamW, cosine rate to zero
    over all batches; scales and offsets have no weight decay. AdamW for the paper's Adam, and the rate, are our choice.

    Args:
        model: what `convert` returned, or a float network with bits (32,); on the device of `data`.
        bits: bit-widths in the order they are trained within a batch, from high to low.
        epochs, batch_size, learning_rate, weight_decay: as usual.
        seed: of the order of the batches.
        on_epoch: called after every epoch with {"epoch": int, "loss": {bits: mean}, "seconds": float}.

    Raises:
        ValueError: an option out of range; bits not trained. TrainingError: the loss or a parameter
        is NaN or infinite, with step and bit-width named.
    """
    check_counts(epochs=epochs, batch_size=batch_size)
    check_rates(learning_rate, weight_decay)
    bits = tuple(bits)
    if not bits:
        raise ValueError("train: bits must name at least one bit-width, got none")
    for b in bits:
        switch_bits_of(model, b)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate)
    steps = math.ceil(len(data.train_images) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for epoch in range(epochs):
        start, losses = time.perf_counter(), dict.fromkeys(bits, 0.0)
        order = batches(data.train_images, data.train_labels, batch_size, generator)
        for number, (images, labels) in enumerate(order, start=epoch * steps + 1):
            for b in bits:
                losses[b] += _step(model, optimizer, images, labels, b, number) / steps
            schedule.step()
        if on_epoch is not None:
            on_epoch({"epoch": epoch + 1, "loss": losses, "seconds": time.perf_counter() - start})


def _step(model, optimizer, images, labels, bits: int, number: int) -> float:
    """Forward, loss, backward and step at one bit-width; the loss. `number` is the batch's, for errors."""
    switch_bits_of(model, bits)
    optimizer.zero_grad(set_to_none=True)  # None, not 0: the scales of other bit-widths must not move
    try:
        loss = F.cross_entropy(model(images), labels)
    except RuntimeError as error:  # a quantizer refuses a scale that is NaN, before there is a loss
        if all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise
        raise TrainingError(f"train: parameters must be finite, got NaN or infinity at step {number}, {bits} bits "
                            f"({error})") from error
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(f"train: loss must be finite, got {value} at step {number}, {bits} bits")
    loss.backward()
    optimizer.step()
    clamp_scales(model)
    return value


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, bits: int, *, batch_size: int = 512) -> float:
    """Share of the test images that `model` classifies correctly at `bits` bits, in [0, 1].

    Afterwards mode and bit-width of the model are as before. Raises ValueError for a bit-width that is not trained.
    """
    with eval_mode(model):
        switch_bits_of(model, bits)
        correct = sum((model(images).argmax(dim=1) == labels).sum() for images, labels in
                      zip(data.test_images.split(batch_size), data.test_labels.split(batch_size), strict=True))
    return correct.item() / len(data.test_labels)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups for an optimizer: scales and offsets without weight decay."""
    learned = [parameter for quantizer in quantizers(model) for parameter in quantizer.parameters()]
    ids = {id(parameter) for parameter in learned}
    others = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    groups = [{"params": others, "weight_decay": weight_decay}, {"params": learned, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def switch_bits_of(model: nn.Module, bits: int) -> None:
    """set_bits, but a float network is its own 32-bit path."""
    if bits != FLOAT or bit_states(model):
        set_bits(model, bits)


def check_counts(**counts: int) -> None:
    """Raise ValueError for the first count below 1, by its name."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"train: {name} must be at least 1, got {value}")


def check_rates(learning_rate: float, weight_decay: float) -> None:
    """Raise ValueError unless the learning rate is > 0, the weight decay >= 0 and both are finite."""
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"train: learning_rate must be positive and finite, got {learning_rate}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"train: weight_decay must be finite and not negative, got {weight_decay}")
