"""A training run in a folder: config.json, metrics.jsonl, float.safetensors, checkpoint.safetensors and two plots."""

import contextlib
import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from .. import distributed
from ..conversion.convert import plan_conversion
from ..data import Data, load_data
from ..models import build_model
from ..options import Options
from ..quantize.bits import FLOAT
from ..quantize.untrained import add_bits
from ..training.interrupt import stop_requests
from ..training.loop import State, Training, evaluate
from .checkpoint import VERSION, CheckpointError, load_checkpoint, load_json, load_metadata, save_checkpoint, save_json
from .memory import MemoryEstimate, estimate_memory
from .metrics import Metrics
from .plots import plot_accuracy, plot_curves
from .profile import QuantizationTime, quantization_time

_CONFIG, _METRICS, _FLOAT, _CHECKPOINT, _ACCURACY, _CURVES = (
    "config.json", "metrics.jsonl", "float.safetensors", "checkpoint.safetensors", "accuracy.png", "curves.png")
_CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Result:
    """Test accuracies in [0, 1], by bit-width and of the float network, and the time spent in quantization."""

    accuracy: dict[int, float]
    float_accuracy: float
    step_ms: float
    quantization: QuantizationTime


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies in [0, 1] of a run; `untrained` are the bit-widths that were made by `add_bits`."""

    accuracy: dict[int, float]
    untrained: tuple[int, ...]
    float_accuracy: float
    finished: bool


@dataclass(frozen=True)
class DryRun:
    """What a run would convert, and hold in memory."""

    conversion: object
    memory: MemoryEstimate
    steps: int


def train_run(options: Options, folder, *, device: str = "cpu", overwrite: bool = False, on_record=None,
              on_batch=None, save_every: float = 300.0) -> Result:
    """Train a float network, convert it, train it at every bit-width, and write all of it to `folder`.

    Under torchrun every process calls it and trains on its part of each batch; the first one writes.

    Args:
        options: what to train.
        folder: made when missing. A run in it, finished or not, is an error without `overwrite`.
        device: 'cpu', 'cuda' or 'cuda:N'.
        on_record: called with every line that goes to metrics.jsonl, as a dict.
        on_batch: called after every batch with the phase, its epoch from 0, the images done in it, and how many it has.
        save_every: seconds between two checkpoints within an epoch.

    Raises:
        ValueError: an option is wrong or a run is there already. OSError: the folder cannot be written.
        TrainingError: the loss is NaN or infinite. Interrupted: Ctrl-C or SIGTERM; `resume_run` goes on.
    """
    folder = Path(folder)
    with _processes(device) as device:
        data, model = _prepare(options, device)
        _plan(options, data, copy.deepcopy(model)).apply()  # an error now, not after float training
        if _is_writer():
            _open_folder(folder, overwrite)
            save_json(folder / _CONFIG, {"version": VERSION, **options.to_json()})
        return _Run(options, folder, data, model, on_record, on_batch, save_every).go()


def resume_run(folder, *, device: str = "cpu", on_record=None, on_batch=None, save_every: float = 300.0) -> Result:
    """Go on with a run that was interrupted or killed, as if it had not been: on CPU with the same metrics, bit by bit.

    Arguments, result and errors as `train_run`; ValueError when there is no run, or it is finished.
    """
    folder = Path(folder)
    with _processes(device) as device:
        options = load_options(folder / _CONFIG)
        data, model = _prepare(options, device)
        run = _Run(options, folder, data, model, on_record, on_batch, save_every)
        if (folder / _CHECKPOINT).exists():
            run.load(_standing(folder))
        elif _is_writer():
            (folder / _METRICS).unlink(missing_ok=True)
        return run.go()


def dry_run(options: Options, *, device: str = "cpu") -> DryRun:
    """What `train_run` would do, without training or writing. Raises as it does."""
    data, model = _prepare(options, check_device(device))
    plan = _plan(options, data, model)
    images = _example(data)
    model = plan.apply()
    memory = estimate_memory(model, images, options, train_size=data.train_size, classes=data.classes)
    return DryRun(plan, memory, data.steps(options.batch_size))


def evaluate_run(folder, *, bits=None, device: str = "cpu") -> Evaluation:
    """Measure a run from its checkpoints: at `bits`, trained or not [default: the trained], and its float network.

    Raises ValueError, naming the file, for a missing, broken or foreign one, and for a run still in its float phase.
    """
    folder, device = Path(folder), check_device(device)
    options = load_options(folder / _CONFIG)
    metadata = _standing(folder)
    if metadata["phase"] == "float":
        raise CheckpointError(f"evaluate_run: folder must hold a network trained at several bit-widths, got {folder}, "
                              "which is still training its float network")
    data, model = _prepare(options, device)
    quantized = _plan(options, data, copy.deepcopy(model)).apply()
    load_checkpoint(folder / _FLOAT, model)
    load_checkpoint(folder / _CHECKPOINT, quantized)
    bits = options.bits if bits is None else tuple(bits)
    untrained = tuple(b for b in bits if b not in options.bits)
    if untrained:
        batches = data.train_batches(options.batch_size, seed=options.seed, epoch=0)
        images = [batch.images for batch, _ in zip(batches, range(_CALIBRATION_BATCHES), strict=False)]
        quantized = add_bits(quantized, untrained, images)
    return Evaluation({b: evaluate(quantized, data, b) for b in bits}, untrained, evaluate(model, data, FLOAT),
                      metadata["phase"] == "finished")


class _Run:
    """One run, from where it stands to its end."""

    def __init__(self, options, folder, data, model, on_record, on_batch, save_every):
        self.options, self.folder, self.data, self.model = options, folder, data, model
        self.metrics = Metrics(folder / _METRICS if _is_writer() else None, on_record)
        self.on_batch, self.save_every = on_batch, save_every
        self.phase, self.state, self.float_accuracy = "float", State(), math.nan
        self.seconds = 0.0  # of the quantized phase

    def load(self, metadata: dict) -> None:
        """Stand where the checkpoint stands."""
        path = self.folder / _CHECKPOINT
        if metadata["phase"] == "finished":
            raise ValueError(f"resume_run: folder must hold a run that is not finished, got {self.folder}")
        self.phase, self.float_accuracy = metadata["phase"], metadata["float_accuracy"]
        self.seconds = metadata["seconds"]
        if self.phase == "quantized":
            self._convert()
        tensors = load_checkpoint(path, self.model)
        position = metadata["state"]
        losses = {int(b): loss for b, loss in position.pop("losses").items()}
        self.state = State(**position, losses=losses, tensors=tensors)
        self.metrics.cut(metadata["metrics"])

    def go(self) -> Result:
        options = self.options
        with stop_requests() as stop:
            if self.phase == "float":
                self._train((FLOAT,), options.float_epochs, stop)
                self.float_accuracy = evaluate(self.model, self.data, FLOAT)
                if _is_writer():
                    save_checkpoint(self.folder / _FLOAT, self.model)
                self._convert()
                self.phase, self.state = "quantized", State()
            self._train(options.bits, options.epochs, stop)
        return self._finish()

    def _train(self, bits, epochs: int, stop) -> None:
        """Train one phase, with a line of metrics and a checkpoint after every epoch."""
        def on_epoch(record):
            distributed.share_from_first(self.model)  # each process has its own running statistics
            if self.phase == "quantized":
                self.seconds += record["seconds"]
            if record["epoch"] % self.options.evaluate_every == 0 or record["epoch"] == epochs:
                record["accuracy"] = {b: evaluate(self.model, self.data, b) for b in bits}
            self.metrics.add({"phase": self.phase, **record})

        on_batch = None if self.on_batch is None else lambda *done: self.on_batch(self.phase, *done)
        training = Training(self.model, self.data, bits, self.options, epochs=epochs, state=self.state)
        training.run(on_epoch=on_epoch, on_batch=on_batch, save=self._save, save_every=self.save_every, stop=stop)

    def _save(self, state: State, phase: str | None = None) -> None:
        if not _is_writer():
            return
        position = {key: value for key, value in vars(state).items() if key != "tensors"}
        save_checkpoint(self.folder / _CHECKPOINT, self.model, state=state.tensors, metadata={
            "phase": phase or self.phase, "state": position, "metrics": self.metrics.size(), "seconds": self.seconds,
            "float_accuracy": self.float_accuracy})

    def _convert(self) -> None:
        _plan(self.options, self.data, self.model).apply()

    def _finish(self) -> Result:
        options, data = self.options, self.data
        accuracy = {b: evaluate(self.model, data, b) for b in options.bits}
        quantization = quantization_time(self.model, _example(data, min(options.batch_size, 128)))
        steps = options.epochs * data.steps(options.batch_size, world=distributed.world_size())
        result = Result(accuracy, self.float_accuracy, 1000 * self.seconds / steps, quantization)
        self.metrics.add({"phase": "result", **asdict(result)})
        if _is_writer():
            plot_accuracy(self.folder / _ACCURACY, accuracy, self.float_accuracy)
            plot_curves(self.folder / _CURVES, self.metrics.read())
        self._save(State(), "finished")  # last: it says that the run is finished
        return result


def _standing(folder: Path) -> dict:
    """Where the run in `folder` stands: the metadata of its checkpoint."""
    metadata = load_metadata(folder / _CHECKPOINT)
    if "phase" not in metadata:
        raise CheckpointError(f"load_metadata: path must be the checkpoint of a run, got {folder / _CHECKPOINT}, which "
                              "holds a network alone")
    return metadata


def load_options(path) -> Options:
    """The Options in a config.json. Raises CheckpointError, naming the file and what is wrong in it."""
    values = load_json(path)
    version = values.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"load_options: version must be {VERSION}, got {version!r} in {path}")
    try:
        return Options.from_json(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"load_options: {path} is not a configuration of this version ({error})") from None


def check_device(name: str) -> torch.device:
    """torch.device(name), once tensors can be made there. Raises ValueError otherwise."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"check_device: device must be cpu, cuda or cuda:N, got {name!r}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"check_device: device must be usable here, got {name!r} ({first_line})") from None


@contextlib.contextmanager
def _processes(device: str):
    """The device of this process, in torchrun's process group where there is one."""
    with distributed.process_group(device) as name:
        yield check_device(name)


def _is_writer() -> bool:
    return distributed.rank() == 0


def _prepare(options: Options, device: torch.device) -> tuple[Data, nn.Module]:
    """The data and a float network on `device`."""
    if options.cuda_graph and device.type != "cuda":
        raise ValueError(f"train: cuda_graph must be off without a CUDA device, got {device}")
    data = load_data(options.data, augment=options.augment, train_limit=options.train_limit or None,
                     test_limit=options.test_limit or None, image_size=options.image_size or None,
                     workers=options.workers, device=device)
    torch.manual_seed(options.seed)
    model = build_model(options.model, classes=data.classes, in_channels=data.in_channels, image_size=data.image_size)
    model = model.to(device)
    distributed.share_from_first(model)
    return data, model


def _example(data: Data, images: int = 2) -> torch.Tensor:
    return next(data.test_batches(min(images, data.test_size))).images


def _plan(options: Options, data: Data, model: nn.Module):
    return plan_conversion(model, options.bits, example=_example(data), batch_norm=options.batch_norm,
                           keep_float=options.keep_float, learn_offset=options.learn_offset)


def _open_folder(folder: Path, overwrite: bool) -> None:
    """Make `folder`, and take the files of an earlier run out of it."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"train_run: folder must be a folder, got a file, {folder}")
    if (folder / _CONFIG).exists() and not overwrite:
        finished = (folder / _CHECKPOINT).exists() and _standing(folder)["phase"] == "finished"
        state, way = ("a finished", "") if finished else ("an unfinished", "mbq resume goes on with it, ")
        raise ValueError(f"train_run: folder must not hold {state} run, got {folder} ({way}--overwrite replaces it)")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_CHECKPOINT, _FLOAT, _METRICS, _ACCURACY, _CURVES):
        (folder / name).unlink(missing_ok=True)
