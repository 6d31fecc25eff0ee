"""Hessian-aware stochastic bit-switching (HASB): the layers of a supernet draw bit-widths of their own."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from ..batches import seeded
from ..quantize.bits import FLOAT, check_bit_widths, converted_states
from ..quantize.layers import weight_layers
from ..sensitivity import Trace


class BitRoulette:
    """Draw bit-widths for the layers of a mixed-precision supernet, anew for every forward of its training.

    A layer draws where r < sigma, r uniform in [0, 1); else it has the bit-width of the batch. With t its Hessian
    trace an element, b the trained bit-widths and e the epoch from 0:

        sigma(e) = largest (e + 1) / epochs, and 0 in the first `uniform_epochs`
        t < mean(t)   every b with the same probability
        else          b with probability b / sum(b): what the loss is sensitive to gets more bits

    In any loop, at every bit-width of a batch from high to low:

        set_bits(model, bits)
        set_layer_bits(model, roulette.draw(step, epoch, bits))
        ... forward, backward and step, then set_layer_bits(model, dict.fromkeys(roulette.layers)) for one bit-width

    BatchNorm must be of pairs of bit-widths (see TransitionalBatchNorm), and begins as trained at one bit-width for all
    layers: `make_transitional`, or `spread_batch_norms` after `uniform_epochs`.

    Args:
        model: what `convert` returned; nothing of it is kept but its bit-widths and the names of its layers.
        traces: of `hessian_traces`, by layer; or numbers in their place, at least 0: the trace an element.
        epochs: of the training.
        uniform_epochs: how many of them begin it with one bit-width for all layers.
        largest: sigma at the end, in [0, 1].
        bits: to draw from, different ones that are trained, from high to low [all that are trained].
        seed: with step and bit-width it decides all that is drawn, in every process and after every stop.

    Attributes: layers, bits; probabilities, of each layer for each of bits, (L, K) float64.

    Raises TypeError, ValueError: an argument out of range; traces of other layers than those that are quantized.

    Reference: Huang et al., "Nearly Lossless Adaptive Bit Switching", 2025, arXiv 2502.01199, alg. 1; sigma and the
    first ten epochs as in its public code.
    """

    def __init__(self, model: nn.Module, traces: Mapping[str, Trace | float], *, epochs: int, uniform_epochs: int = 10,
                 largest: float = 0.5, bits=None, seed: int = 0):
        self.layers = tuple(weight_layers(model))
        trained = dict.fromkeys(b for state in converted_states("BitRoulette", model) for b in state.trained)
        self.bits = tuple(trained) if bits is None else check_bit_widths("BitRoulette", bits)
        if unknown := set(self.bits) - trained.keys():
            raise ValueError(f"BitRoulette: bits must be trained ones, of {', '.join(map(str, trained))}, got "
                             f"{max(unknown)}")
        for name, value, least in (("epochs", epochs, 1), ("uniform_epochs", uniform_epochs, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"BitRoulette: {name} must be an integer of at least {least}, got {value!r}")
        if uniform_epochs >= epochs:
            raise ValueError(f"BitRoulette: uniform_epochs must be below epochs, or no layer ever draws, got "
                             f"{uniform_epochs} of {epochs}")
        if not 0 <= largest <= 1:
            raise ValueError(f"BitRoulette: largest must be in [0, 1], got {largest}")
        self.epochs, self.uniform_epochs, self.largest, self.seed = epochs, uniform_epochs, largest, seed
        values = torch.tensor(_checked(traces, self.layers), dtype=torch.float64)
        alike = torch.full((len(self.bits),), 1 / len(self.bits), dtype=torch.float64)
        by_bits = torch.tensor(self.bits, dtype=torch.float64) / sum(self.bits)
        self.probabilities = torch.where((values < values.mean()).unsqueeze(1), alike, by_bits)
        self._edges = self.probabilities.cumsum(1)[:, :-1]

    def sigma(self, epoch: int) -> float:
        """Return the probability that a layer draws in `epoch`, from 0. Raises ValueError for one out of range."""
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"BitRoulette: epoch must be in 0..{self.epochs - 1}, got {epoch}")
        return 0.0 if epoch < self.uniform_epochs else self.largest * (epoch + 1) / self.epochs

    def draw(self, step: int, epoch: int, bits: int) -> dict[str, int | None]:
        """Return, for `set_layer_bits`, the bit-width of every layer that draws, and None for the others.

        Args:
            step: counts the batches of the whole training.
            epoch: it belongs to, from 0.
            bits: the bit-width of the batch; at 32, in float, no layer draws.

        Raises ValueError for an epoch out of range, and for bits that are not drawn from.
        """
        if bits not in (FLOAT, *self.bits):
            raise ValueError(f"BitRoulette: bits must be one of {', '.join(map(str, (FLOAT, *self.bits)))}, got {bits}")
        sigma = self.sigma(epoch)
        if bits == FLOAT or sigma == 0:
            return dict.fromkeys(self.layers)
        chances, places = torch.rand(2, len(self.layers), dtype=torch.float64,
                                     generator=seeded("hasb", self.seed, step, bits))
        drawn = (places.unsqueeze(1) >= self._edges).sum(1)
        return {name: self.bits[place] if chance < sigma else None for name, chance, place in
                zip(self.layers, chances.tolist(), drawn.tolist(), strict=True)}


def _checked(traces: Mapping[str, Trace | float], layers: tuple[str, ...]) -> list[float]:
    """Return the trace of every layer. Raises ValueError where traces are of other layers, or no trace of one."""
    if not isinstance(traces, Mapping):
        raise TypeError(f"BitRoulette: traces must be a mapping by layer, got {type(traces).__name__}")
    if missing := [name for name in layers if name not in traces]:
        raise ValueError(f"BitRoulette: traces must hold every quantized layer, got none of {missing[0]!r}")
    if unknown := [name for name in traces if name not in layers]:
        raise ValueError(f"BitRoulette: traces must be of quantized layers, got one of {unknown[0]!r}")
    values = [trace.mean if isinstance(trace, Trace) else float(trace) for trace in map(traces.get, layers)]
    for name, value in zip(layers, values, strict=True):
        if not 0 <= value < math.inf:
            raise ValueError(f"BitRoulette: traces must be finite and at least 0, got {value} of {name!r}")
    return values
