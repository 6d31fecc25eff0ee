"""search_run: bit-widths of a run's layers within limits, and what the network reaches with them."""

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from mbq_train import (
    Allocation,
    CheckpointError,
    adapt_bn,
    allocate,
    hessian_costs,
    loss_costs,
    multiply_accumulates,
    other_allocations,
    pareto_allocations,
    save_checkpoint,
    set_bits,
    set_layer_bits,
    tied_layers,
    trace_costs,
)
from mbq_train._names import look_up
from mbq_train._packages import required
from mbq_train.checkpoint import load_json
from mbq_train.files import save_json
from mbq_train.quantize.bits import converted_states, quantized
from mbq_train.quantize.layers import weight_layers

from ..data import Data
from ..options import Options
from ..training.accuracy import evaluate
from ..training.loop import Training
from ..training.traces import float_traces
from .folder import SEARCH, SEARCH_NETWORK, SEARCH_PLOT
from .networks import calibration_batches, example_images, load_data_and_network
from .observer import Observer
from .plots import plot_search

OBJECTIVES = ("hessian", "trace", "loss")
_FINE_TUNING_RATE = 0.1


@dataclass(frozen=True)
class Found:
    """An allocation, and the test accuracy in [0, 1] of the network at its bit-widths, not trained there."""

    allocation: Allocation
    accuracy: float

    def to_json(self) -> dict:
        """Return it as a JSON object."""
        return {**asdict(self.allocation), "accuracy": self.accuracy}


@dataclass(frozen=True)
class SearchResult:
    """What `search_run` found: the allocations, the best first; one for every bit-width alone; those of the sweep from
    few bits to many; and the accuracy of the best after its fine-tuning, None without."""

    found: list[Found]
    uniform: dict[int, Found]
    pareto: list[Found]
    fine_tuned: float | None
    objective: str
    network: nn.Module  # the network at the best allocation
    model_bits: int  # its bit-width, of norms that follow no quantized layer: the trained one nearest to the mean

    def to_json(self) -> dict:
        """Return all of it but the network as a JSON object."""
        return {"objective": self.objective, "model_bits": self.model_bits,
                "found": [one.to_json() for one in self.found],
                "uniform": {str(b): one.to_json() for b, one in self.uniform.items()},
                "pareto": [one.to_json() for one in self.pareto], "fine_tuned": self.fine_tuned}


def search_run(folder, *, objective: str = "hessian", bits: Iterable[int] | None = None, solutions: int = 1,
               sweep: int = 0, fine_tune: int = 0, latency=None, adapt: bool = False, device: str = "cpu",
               observer: Observer | None = None, **limits: float | None) -> SearchResult:
    """Give the layers of a run's network bit-widths within limits, and measure what it reaches with them.

    The run stays as it is. Its folder gets search.json, search.png, and search.safetensors, the network at the best
    allocation, which `load_quantized` reads.

    Args:
        folder: of a run.
        objective: 'hessian', HAWQ-V2's cost; 'trace', the paper's sum of traces times bits; 'loss', measured on 8
            training batches with each layer alone at each bit-width.
        bits: to choose from [those of the run; 8, 4 and 2 with round-clamp and one].
        solutions: how many different allocations to measure, the best first.
        sweep: at how many mean bit-widths, between the least and the most, to measure the best allocation.
        fine_tune: epochs of training at the best allocation, at a tenth of the run's learning rate.
        latency: {layer: {bits: seconds}}, or a JSON file of it.
        adapt: estimate BatchNorm's statistics anew, from 8 training batches, for every configuration before it is
            measured, because mixed ones have met few batches in training, or none.
        device: as for `train_run`.
        limits: mean_bits, max_bytes, max_bit_operations, max_latency and input_bits of `allocate`.

    Raises: ValueError as `allocate`, for an unknown objective and for a run without a quantized network.
    """
    for package in ("scipy", "matplotlib"):
        required("search_run", package)
    look_up("search_run", dict.fromkeys(OBJECTIVES), objective, argument="objective")
    folder, observer = Path(folder), observer or Observer()
    options, data, model = load_data_and_network(folder, device)
    model = model.to(data.device)
    choices = _choices(options, bits)
    for b in choices:
        set_layer_bits(model, dict.fromkeys(weight_layers(model), b))  # errors now, not after the traces
    set_layer_bits(model, dict.fromkeys(weight_layers(model)))
    costs = _costs(objective, choices, model, data, options, folder, observer)
    sizes = {name: layer.weight.numel() for name, layer in weight_layers(model).items()}
    given = {**limits, "operations": multiply_accumulates(model, example_images(data, 1)),
             "latency": _latency(latency, list(sizes)), "tied": tied_layers(model)}
    images = [batch.images for batch in calibration_batches(options, data)] if adapt else []
    measure = functools.partial(_measured, model, data, images)
    found = [measure(one) for one in (other_allocations(costs, sizes, count=solutions, **given) if solutions > 1 else
                                      [allocate(costs, sizes, **given)])]
    free = {name: value for name, value in given.items() if name in ("operations", "latency", "input_bits", "tied")}
    uniform = {b: measure(allocate(costs, sizes, bits=(b,), **free)) for b in choices}
    pareto = [measure(one) for one in _front(costs, sizes, choices, sweep, free)]
    model_bits = _configure(model, found[0].allocation)
    if adapt:
        adapt_bn(model, model_bits, images)
    fine_tuned = _fine_tuned(model, data, options, model_bits, fine_tune) if fine_tune else None
    result = SearchResult(found, uniform, pareto, fine_tuned, objective, model, model_bits)
    save_checkpoint(folder / SEARCH_NETWORK, model)
    plot_search(folder / SEARCH_PLOT, result)
    save_json(folder / SEARCH, result.to_json())
    return result


def _choices(options: Options, bits) -> tuple[int, ...]:
    trained = quantized(options.bits)
    free = options.quantizer == "round-clamp" and len(trained) == 1  # which has every bit-width
    return tuple(bits) if bits is not None else (8, 4, 2) if free else trained


def _costs(objective: str, bits: tuple[int, ...], model: nn.Module, data: Data, options: Options, folder: Path,
           observer: Observer) -> dict[str, dict[int, float]]:
    if objective == "loss":
        batches = [(batch.images, batch.labels) for batch in calibration_batches(options, data)]
        return loss_costs(model, batches, bits)
    traces = float_traces(model, data, options, folder=folder, on_probe=observer.probe)
    if objective == "trace":
        return trace_costs(traces, bits, tied=tied_layers(model))
    return hessian_costs(model, traces, bits)


def _latency(latency, layers: list[str]) -> dict[str, dict[int, float]] | None:
    """Return {layer: {bits: seconds}}, read where it is a file, whose bit-widths are strings."""
    if latency is None:
        return None
    table: Mapping[str, Any] = latency if isinstance(latency, Mapping) else load_json(latency)
    try:
        return {layer: {int(b): seconds for b, seconds in of_layer.items()} for layer, of_layer in table.items()}
    except (AttributeError, ValueError) as error:
        raise CheckpointError(f"search_run: latency must be {{layer: {{bits: seconds}}}} for {', '.join(layers[:3])}, "
                              f"..., got an error ({error})") from error


def _configure(model: nn.Module, allocation: Allocation) -> int:
    """Give layers the bit-widths of `allocation`, and the model the trained one nearest to their mean; return it."""
    set_layer_bits(model, allocation.bits)
    trained = converted_states("search_run", model)[0].trained
    nearest = min(trained, key=lambda b: abs(b - allocation.mean_bits))
    set_bits(model, nearest)
    return nearest


def _measured(model: nn.Module, data: Data, images: list, allocation: Allocation) -> Found:
    """Return the accuracy at `allocation`, with BatchNorm's statistics over `images` where there are any."""
    bits = _configure(model, allocation)
    network = adapt_bn(copy.deepcopy(model), bits, images) if images else model
    return Found(allocation, evaluate(network, data, bits))


def _front(costs, sizes, bits: tuple[int, ...], points: int, options) -> list[Allocation]:
    if not points:
        return []
    least, most = min(bits), max(bits)
    means = [least + (most - least) * place / max(points - 1, 1) for place in range(points)]
    return pareto_allocations(costs, sizes, mean_bits=means, bits=bits, **options)


def _fine_tuned(model: nn.Module, data: Data, options: Options, bits: int, epochs: int) -> float:
    """Train `model` as it is, at the bit-widths of its layers; return its test accuracy."""
    gentle = replace(options, learning_rate=_FINE_TUNING_RATE * options.learning_rate, distill=0.0, compile=False,
                     cuda_graph=False, weight_bank=False)
    Training(model, data, (bits,), gentle, epochs=epochs).run()
    return evaluate(model, data, bits)
