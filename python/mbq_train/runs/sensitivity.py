"""The Hessian's traces of a run's float network, measured once, and the sensitivities of its layers."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from .. import distributed
from ..data import Data
from ..options import Options
from ..quantize.bits import FLOAT, check_bit_widths, quantized, set_bits
from ..quantize.scales import initialise
from ..sensitivity import Trace, hessian_traces, perturbations, sensitivities
from .checkpoint import CheckpointError, load_checkpoint, load_json, save_json
from .folder import CONFIG, FLOAT_NETWORK, SENSITIVITY, TRACES, load_options
from .plots import plot_sensitivities
from .prepare import check_device, plan_of, prepare

_BATCH = 32


@dataclass(frozen=True)
class Sensitivities:
    """Of every layer to quantize: its trace, and its sensitivity by bit-width."""

    traces: dict[str, Trace]
    at_bits: dict[int, dict[str, float]]


def sensitivity_of_run(folder, *, bits=None, device: str = "cpu", on_probe=None) -> Sensitivities:
    """Return the sensitivities of a run's float network at `bits` [default: the run's, or 8, 4 and 2 where it has only
    one].

    Scales are those that the run's quantizer begins with. Traces are kept in the run's sensitivity.json, a picture goes
    to sensitivity.png. Raises ValueError, naming the file, where the run has no float network yet.
    """
    folder, device = Path(folder), check_device(device)
    options = load_options(folder / CONFIG)
    if bits is None:
        bits = quantized(options.bits) if len(quantized(options.bits)) > 1 else (8, 4, 2)
    data, model = prepare(options, device)
    load_checkpoint(folder / FLOAT_NETWORK, model)
    model = plan_of(options, data, model, check_bit_widths("sensitivity_of_run", bits)).apply()
    traces = float_traces(model, data, options, folder=folder, on_probe=on_probe)
    initialise(model, next(data.train_batches(options.batch_size, seed=options.seed, epoch=0)).images)
    found = {}
    for b in bits:
        set_bits(model, b)
        found[b] = sensitivities(traces, perturbations(model))
    plot_sensitivities(folder / SENSITIVITY, found)
    return Sensitivities(traces, found)


def float_traces(model: nn.Module, data: Data, options: Options, *, folder: Path | None = None,
                 on_probe=None) -> dict[str, Trace]:
    """Return hessian_traces of a converted `model` on options.hessian_images training images, as options say.

    With a folder they are kept there, in sensitivity.json, with what they were measured on; a file of the same weights,
    data and options is read instead. Of several processes each measures the same, and all get their mean.
    """
    made_from = {"weights": _digest(model), "data": [data.name, data.train_size], "images": options.hessian_images,
                 "probes": options.hessian_probes, "tolerance": options.hessian_tolerance, "seed": options.seed}
    path = None if folder is None else folder / TRACES
    if path is not None and (kept := _read(path, made_from)) is not None:
        return kept
    traces = hessian_traces(model, _batches(data, options), probes=options.hessian_probes, seed=options.seed,
                            tolerance=options.hessian_tolerance, on_probe=on_probe)
    traces = _shared(traces, data.device)
    if path is not None and distributed.rank() == 0:
        save_json(path, {"made_from": made_from, "layers": {name: vars(trace) for name, trace in traces.items()}})
    return traces


def _shared(traces: dict[str, Trace], device) -> dict[str, Trace]:
    """Return the same in every process, which may round differently: they decide on bit-widths."""
    rows = [[trace.value, trace.error] for trace in traces.values()]
    numbers = torch.tensor(rows, dtype=torch.float64, device=device)
    return {name: replace(trace, value=value, error=error) for (name, trace), (value, error) in
            zip(traces.items(), distributed.mean(numbers).tolist(), strict=True)}


def _batches(data: Data, options: Options) -> list:
    """Return (images, labels) of the first options.hessian_images training images of the first epoch, in batches."""
    left = range(options.hessian_images, 0, -_BATCH)  # at every batch
    batches = data.train_batches(_BATCH, seed=options.seed, epoch=0)
    return [(batch.images[:most], batch.labels[:most]) for most, batch in zip(left, batches, strict=False)]


def _read(path: Path, made_from: dict) -> dict[str, Trace] | None:
    """Return what the file at `path` holds, None where it is not there, damaged or made from something else."""
    try:
        kept = load_json(path)
        if kept["made_from"] == made_from:
            return {name: Trace(**trace) for name, trace in kept["layers"].items()}
    except (CheckpointError, KeyError, TypeError):
        pass
    return None


def _digest(model: nn.Module) -> str:
    """Return the SHA-256 of the state of the network's 32-bit path."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        other_norm = ".by_bits." in name and f".by_bits.{FLOAT}." not in name
        if "_quantizer." not in name and not other_norm:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
