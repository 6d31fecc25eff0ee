"""sensitivity_of_run: how much the loss grows when a layer is quantized, bit-width by bit-width."""

from dataclasses import dataclass
from pathlib import Path

from mbq_train._packages import required
from mbq_train.checkpoint import load_checkpoint
from mbq_train.quantize.bits import check_bit_widths, quantized, set_bits
from mbq_train.quantize.scales import initialise
from mbq_train.sensitivity import Trace, perturbations, sensitivities

from ..training.traces import float_traces
from .devices import check_device
from .folder import CONFIG, FLOAT_NETWORK, SENSITIVITY, load_options
from .networks import data_and_float_network, plan_of
from .observer import Observer
from .plots import plot_sensitivities


@dataclass(frozen=True)
class Sensitivities:
    """Of every layer to quantize: its trace, and its sensitivity by bit-width."""

    traces: dict[str, Trace]
    at_bits: dict[int, dict[str, float]]


def sensitivity_of_run(folder, *, bits=None, device: str = "cpu",
                       observer: Observer | None = None) -> Sensitivities:
    """Return the sensitivities of a run's float network at `bits` [default: the run's, or 8, 4 and 2 where it has only
    one].

    Scales are those that the run's quantizer begins with. Traces are kept in the run's sensitivity.json, a picture goes
    to sensitivity.png. Raises ValueError, naming the file, where the run has no float network yet.
    """
    required("sensitivity_of_run", "matplotlib")
    folder, device = Path(folder), check_device(device)
    options = load_options(folder / CONFIG)
    if bits is None:
        bits = quantized(options.bits) if len(quantized(options.bits)) > 1 else (8, 4, 2)
    data, model = data_and_float_network(options, device)
    load_checkpoint(folder / FLOAT_NETWORK, model)
    model = plan_of(options, data, model, check_bit_widths("sensitivity_of_run", bits)).apply()
    traces = float_traces(model, data, options, folder=folder, on_probe=(observer or Observer()).probe)
    initialise(model, next(data.train_batches(options.batch_size, seed=options.seed, epoch=0)).images)
    found = {}
    for b in bits:
        set_bits(model, b)
        found[b] = sensitivities(traces, perturbations(model))
    plot_sensitivities(folder / SENSITIVITY, found)
    return Sensitivities(traces, found)
