"""What a bit-width costs a layer: by the Hessian, by the trace alone, or as measured."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from ..quantize.bits import FLOAT, bit_states, check_bit_widths, converted_states, in_mode, set_bits
from ..quantize.layer_bits import set_layer_bits, without_layer_bits
from ..quantize.layers import weight_layers
from ..sensitivity import Trace, perturbations, sensitivities
from .tied import leaders_of, tied_layers


def hessian_costs(model: nn.Module, traces: Mapping[str, Trace], bits: Iterable[int]) -> dict[str, dict[int, float]]:
    """Return {layer: {bits: t ||Q(W) - W||^2}}, t the mean trace of the layer's Hessian: how much the loss grows, to
    second order, when the layer is quantized. Layers that share a weight share its cost: each has an equal part.

    Args:
        model: what `convert` returned, with first values for all scales; left as it was.
        traces: of `hessian_traces`, by layer.
        bits: the bit-widths, from high to low, that `set_layer_bits` can give.

    Warns of negative traces, which count as 0. Raises: ValueError for traces of other layers, for a trace that is NaN,
    and as `set_layer_bits`.

    Reference: Dong et al., "HAWQ-V2", 2019, arXiv 1911.03852, eq. 10.
    """
    layers = _checked("hessian_costs", model, traces)
    costs, parts = {name: {} for name in layers}, _parts(layers, tied_layers(model))
    with _layers_free(model):
        for b in check_bit_widths("hessian_costs", bits):
            set_layer_bits(model, dict.fromkeys(layers, b))
            for name, cost in sensitivities(traces, perturbations(model)).items():
                costs[name][b] = cost / parts[name]
    return costs


def trace_costs(traces: Mapping[str, Trace], bits: Iterable[int], *,
                tied: Iterable[Iterable[str]] = ()) -> dict[str, dict[int, float]]:
    """Return {layer: {bits: -t bits}}, t the mean trace of the layer's Hessian: the least sum gives the most bits to
    the layers whose loss bends most. Layers in one group of `tied`, of `tied_layers`, have an equal part each.

    Warns of negative traces, which count as 0. Raises ValueError for no traces, a trace that is NaN, and bits as
    `convert`.

    Reference: Huang et al., 2025, arXiv 2502.01199, section 3.4, maximised where the paper prints minimise.
    """
    bits = check_bit_widths("trace_costs", bits)
    _check_traces("trace_costs", traces)
    parts = _parts(traces, tied)
    return {name: {b: -trace.mean * b / parts[name] for b in bits} for name, trace in traces.items()}


@torch.no_grad()
def loss_costs(model: nn.Module, batches: Iterable, bits: Iterable[int], *,
               loss: Callable = F.cross_entropy) -> dict[str, dict[int, float]]:
    """Return {layer: {bits: how much the mean loss grows}} where that layer alone is at `bits`, all others at the
    highest of them. Layers that share a weight go together, and each has an equal part.

    One pass over the batches for each layer and bit-width, in eval mode; the model is left as it was.

    Args:
        model: what `convert` returned, with first values for all scales.
        batches: a sequence of (inputs, targets, ...); they weigh by their number of samples.
        bits: the bit-widths, from high to low, that `set_layer_bits` can give.
        loss: (outputs, targets) -> the mean loss.

    Raises: ValueError for no batches, a loss that is not finite, and as `set_layer_bits`.
    """
    bits, batches = check_bit_widths("loss_costs", bits), list(batches)
    if not batches:
        raise ValueError("loss_costs: batches must hold samples, got none")
    converted_states("loss_costs", model)
    layers = weight_layers(model)
    with _layers_free(model), in_mode(model, training=False):
        if all(bits[0] in state.trained for state in bit_states(model)):
            set_bits(model, bits[0])  # norms that follow no quantized layer are at the highest too
        set_layer_bits(model, dict.fromkeys(layers, bits[0]))
        base = _mean_loss(model, batches, loss)
        costs = {name: {bits[0]: 0.0} for name in layers}
        for group in _groups(layers, tied_layers(model)):
            for b in bits[1:]:
                set_layer_bits(model, dict.fromkeys(group, b))
                more = _mean_loss(model, batches, loss) - base
                for name in group:
                    costs[name][b] = more / len(group)
            set_layer_bits(model, dict.fromkeys(group, bits[0]))
    return costs


def _groups(layers: Iterable[str], tied: Iterable[Iterable[str]]) -> list[tuple[str, ...]]:
    """Return all of `layers`, those that share a weight in one group."""
    layers, groups = list(layers), {}
    for layer, leader in leaders_of("trace_costs", layers, tied).items():
        groups.setdefault(leader, []).append(layer)
    return [tuple(group) for group in groups.values()]


def _parts(layers: Iterable[str], tied: Iterable[Iterable[str]]) -> dict[str, int]:
    """Return among how many layers the weight of each is shared."""
    return {layer: len(group) for group in _groups(layers, tied) for layer in group}


def _mean_loss(model: nn.Module, batches: list, loss: Callable) -> float:
    total, samples = 0.0, 0
    for inputs, targets, *_ in batches:
        total += loss(model(inputs), targets).item() * len(targets)
        samples += len(targets)
    if not math.isfinite(total):
        raise ValueError(f"loss_costs: loss must be finite, got {total / samples}")
    return total / samples


@contextlib.contextmanager
def _layers_free(model: nn.Module) -> Iterator[None]:
    """Put the bit-widths of layers and of the model back at the end of the block, in which no layer is in float."""
    with in_mode(model, training=model.training), without_layer_bits(model):
        for state in bit_states(model):
            if state.bits == FLOAT:
                state.select(state.trained[0])
        yield


def _checked(function: str, model: nn.Module, traces: Mapping[str, Trace]) -> dict[str, nn.Module]:
    converted_states(function, model)
    layers = weight_layers(model)
    for name in traces.keys() ^ layers.keys():
        raise ValueError(f"{function}: traces must be those of the model's quantized layers, got {name} in one alone")
    _check_traces(function, traces)
    return layers


def _check_traces(function: str, traces: Mapping[str, Trace]) -> None:
    if not traces:
        raise ValueError(f"{function}: traces must name layers, got none")
    for name, trace in traces.items():
        if not math.isfinite(trace.value):
            raise ValueError(f"{function}: traces must be finite, got {trace.value} for {name}")
    if negative := [name for name, trace in traces.items() if trace.value < 0]:
        warnings.warn(f"{function}: traces of {', '.join(negative)} are negative: to second order the loss does not "
                      "grow with their error, and they count as 0; more probes or images may say otherwise",
                      RuntimeWarning, stacklevel=3)
