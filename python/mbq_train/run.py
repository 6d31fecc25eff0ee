"""A training run in a folder: config.json, metrics.jsonl, float.safetensors, checkpoint.safetensors, accuracy.png."""

import copy
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from .bits import FLOAT, check_bit_widths
from .checkpoint import CheckpointError, load_checkpoint, load_json, save_checkpoint, save_json
from .convert import convert
from .data import Data, load_data
from .models import build_model
from .plots import plot_accuracy
from .profile import QuantizationTime, quantization_time
from .training import check_counts, check_rates, evaluate, train

VERSION = 1  # of config.json and of the names of the tensors in the checkpoints
_CONFIG, _METRICS, _FLOAT, _CHECKPOINT, _PLOT = (
    "config.json", "metrics.jsonl", "float.safetensors", "checkpoint.safetensors", "accuracy.png")


@dataclass(frozen=True)
class Options:
    """What a run is made from; written to config.json. The defaults are our choice for the digits."""

    data: str = "digits"
    model: str = "resnet8"
    bits: tuple[int, ...] = (8, 4, 2)
    epochs: int = 30
    float_epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 5e-5
    batch_norm: str = "per_bit"
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """Test accuracies in [0, 1], by bit-width and of the float network, and the time spent in quantization."""

    accuracy: dict[int, float]
    float_accuracy: float
    step_ms: float
    quantization: QuantizationTime


def train_run(options: Options, folder, *, device: str = "cpu", overwrite: bool = False, on_epoch=None) -> Result:
    """Train a float network, convert it, train it at every bit-width, and write all of it to `folder`.

    Args:
        options: what to train.
        folder: made when missing. A finished run in it is an error without `overwrite`.
        device: 'cpu', 'cuda' or 'cuda:N'.
        on_epoch: called after every epoch with the line that goes to metrics.jsonl, as a dict.

    Raises:
        ValueError: an option is wrong or the run is there already. OSError: the folder cannot be written.
        TrainingError: the loss is NaN or infinite.
    """
    folder, device = Path(folder), check_device(device)
    data, model = _prepare(options, device)
    _open_folder(folder, overwrite)
    save_json(folder / _CONFIG, {"version": VERSION, **asdict(options)})
    report = _reporter(folder / _METRICS, on_epoch)

    _train_phase("float", model, data, (FLOAT,), options.float_epochs, options, report)
    save_checkpoint(folder / _FLOAT, model)
    float_accuracy = evaluate(model, data, FLOAT)

    convert(model, options.bits, batch_norm=options.batch_norm)
    seconds = _train_phase("quantized", model, data, options.bits, options.epochs, options, report)
    accuracy = {b: evaluate(model, data, b) for b in options.bits}
    steps = options.epochs * -(-len(data.train_images) // options.batch_size)
    quantization = quantization_time(model, data.train_images[:options.batch_size])
    result = Result(accuracy, float_accuracy, 1000 * seconds / steps, quantization)
    report({"phase": "result", **asdict(result)})
    plot_accuracy(folder / _PLOT, accuracy, float_accuracy)
    save_checkpoint(folder / _CHECKPOINT, model)  # last: its presence says that the run is finished
    return result


def evaluate_run(folder, *, device: str = "cpu") -> tuple[dict[int, float], float]:
    """(accuracy by bit-width, accuracy of the float network) of a finished run, from its checkpoints.

    Raises ValueError, naming the file, for a missing, broken or foreign one.
    """
    folder, device = Path(folder), check_device(device)
    options = load_options(folder / _CONFIG)
    data, model = _prepare(options, device)
    quantized = convert(copy.deepcopy(model), options.bits, batch_norm=options.batch_norm)
    load_checkpoint(folder / _FLOAT, model)
    load_checkpoint(folder / _CHECKPOINT, quantized)
    return {b: evaluate(quantized, data, b) for b in options.bits}, evaluate(model, data, FLOAT)


def load_options(path) -> Options:
    """The Options in a config.json. Raises CheckpointError, naming the file and what is wrong in it."""
    values = load_json(path)
    version = values.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"load_options: version must be {VERSION}, got {version!r} in {path}")
    kinds = {field.name: type(field.default) for field in fields(Options)} | {"bits": list}
    if values.keys() != kinds.keys():
        raise CheckpointError(f"load_options: path must hold {', '.join(kinds)}, got {path} with "
                              f"{', '.join(values) or 'nothing'}")
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise CheckpointError(f"load_options: {name} must be of type {kind.__name__}, got {values[name]!r} "
                                  f"in {path}")
    return Options(**{**values, "bits": check_bit_widths("load_options", values["bits"])})


def check_device(name: str) -> torch.device:
    """torch.device(name), once tensors can be made there. Raises ValueError otherwise."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"check_device: device must be cpu, cuda or cuda:N, got {name!r}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"check_device: device must be usable here, got {name!r} ({first_line})") from None


def _prepare(options: Options, device: torch.device) -> tuple[Data, nn.Module]:
    """The data and a float network on `device`, once every option is right: before anything is written."""
    check_bit_widths("train_run", options.bits)
    check_counts(epochs=options.epochs, float_epochs=options.float_epochs, batch_size=options.batch_size)
    check_rates(options.learning_rate, options.weight_decay)
    data = load_data(options.data).to(device)
    torch.manual_seed(options.seed)
    model = build_model(options.model, classes=data.classes, in_channels=data.in_channels).to(device)
    convert(copy.deepcopy(model), options.bits, batch_norm=options.batch_norm)  # an error now, not after float training
    return data, model


def _open_folder(folder: Path, overwrite: bool) -> None:
    """Make `folder`, and take the files of an earlier run out of it."""
    if (folder / _CHECKPOINT).exists() and not overwrite:
        raise ValueError(f"train_run: folder must not hold a finished run, got {folder} (--overwrite replaces it)")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"train_run: folder must be a folder, got a file, {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_CHECKPOINT, _FLOAT, _METRICS, _PLOT):
        (folder / name).unlink(missing_ok=True)


def _reporter(path: Path, on_epoch):
    """A function that appends a record to metrics.jsonl and shows it to on_epoch."""
    def report(record: dict) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if on_epoch is not None:
            on_epoch(record)
    return report


def _train_phase(phase, model, data, bits, epochs, options, report) -> float:
    """Train, reporting every epoch with its test accuracies; the seconds spent in training itself."""
    seconds = 0.0

    def on_epoch(record):
        nonlocal seconds
        seconds += record["seconds"]
        report({"phase": phase, **record, "accuracy": {b: evaluate(model, data, b) for b in bits}})

    train(model, data, bits, epochs=epochs, batch_size=options.batch_size, learning_rate=options.learning_rate,
          weight_decay=options.weight_decay, seed=options.seed, on_epoch=on_epoch)
    return seconds
