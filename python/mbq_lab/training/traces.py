"""The Hessian's traces of a network's float path, measured once for a folder."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from mbq_train import distributed
from mbq_train._errors import first_line
from mbq_train.checkpoint import CheckpointError, load_json
from mbq_train.files import save_json
from mbq_train.quantize.batch_norm import norm_of
from mbq_train.quantize.bits import FLOAT
from mbq_train.sensitivity import Trace, hessian_traces

from ..data import Data
from ..options import Options

TRACES = "sensitivity.json"
_BATCH = 32


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


def check_traces(model: nn.Module, data: Data, needed: str) -> None:
    """Measure traces of a few images. Raises ValueError, `needed` says what must be then, for a network that cannot be
    differentiated twice."""
    batch = next(data.test_batches(min(4, data.test_size)))
    try:
        hessian_traces(model, [(batch.images, batch.labels)], probes=2)
    except Exception as error:  # whatever such a network raises
        raise ValueError(f"train: {needed} for a network whose traces cannot be measured, got "
                         f"{type(model).__name__} ({first_line(error)})") from error


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
        if "_quantizer." not in name and norm_of(name) in (None, str(FLOAT)):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
