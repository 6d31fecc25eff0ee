"""The scales of a whole model: their names for optimizers and wrappers, first values, gradients to drop."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .batch_norm import batch_norms
from .bits import in_mode, same_random_numbers, set_bits
from .layer_bits import without_layer_bits
from .quantizer import quantizers


def scales(model: nn.Module) -> list[nn.Parameter]:
    """Return what the quantizers of `model` learn, scales and offsets of every bit-width, in the order of registration.

    For optimizers (no weight decay) and for wrappers: `fully_shard(model, ignored_params=set(scales(model)))`.
    """
    return [parameter for quantizer in quantizers(model) for parameter in quantizer.parameters()]


@torch.no_grad()
def clamp_scales(model: nn.Module) -> None:
    """Bring the Parameter of every scale up to its floor, in place.

    Not needed: kernels compute with max(scale, floor). A Parameter that an optimizer carried far below its floor comes
    back sooner with it.
    """
    below = [(scale, quantizer.scale_floors[b] / quantizer.scale_units[b]) for quantizer in quantizers(model)
             for b, scale in (quantizer.scales.items() if quantizer.kept() else ())]
    if below:
        torch._foreach_maximum_(*map(list, zip(*below, strict=True)))


def drop_idle_gradients(model: nn.Module, used: Iterable[int]) -> None:
    """Set the gradients of scales and offsets of bit-widths that are not in `used` to None.

    A compiled model gives them zeros, and an optimizer with momentum would move them. Call it before the step.
    """
    for quantizer in quantizers(model):
        kept = {str(quantizer.kept_at(quantizer.bits_at(b))) for b in used}
        for parameters in quantizer.learned():
            for bits, parameter in parameters.items():
                if bits not in kept:
                    parameter.grad = None


@torch.no_grad()
def initialise(model: nn.Module, *batch: Any, **named: Any) -> None:
    """Give every quantizer that still lacks them its first values from one training batch, at every bit-width.

    Runs model(*batch, **named) in training mode without gradients. Afterwards BatchNorm's statistics, the random
    numbers, modes and bit-width are as before. torch.compile, CUDA graphs and averages of the model need it before they
    start; otherwise the first forward at each bit-width does the same. Only layers that are called get values. Where
    BatchNorm cannot train on the batch, which has one value per channel, it computes as in eval mode.
    """
    missing = {next(b for b in quantizer.bit_state.trained if quantizer.kept_at(b) == kept)
               for quantizer in quantizers(model) for kept in quantizer.missing}
    own = {id(buffer) for quantizer in quantizers(model) for buffer in quantizer.buffers()}
    others = [buffer for buffer in model.buffers() if id(buffer) not in own]
    before = [buffer.clone() for buffer in others]
    try:
        with same_random_numbers(model), in_mode(model, training=True), without_layer_bits(model):
            for bits in sorted(missing, reverse=True):
                set_bits(model, bits)
                _forward(model, batch, named)
    finally:
        for buffer, value in zip(others, before, strict=True):
            if not torch.equal(buffer, value):  # one that is expanded was not written to, and cannot be
                buffer.copy_(value)


def _forward(model: nn.Module, batch, named) -> None:
    try:
        model(*batch, **named)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        for norm in batch_norms(model):
            norm.training = False
        model(*batch, **named)
