"""train_run and resume_run: a training run in a folder, from where it stands to its end."""

import copy
import functools
import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from mbq_train import distributed
from mbq_train.checkpoint import VERSION, load_checkpoint, save_checkpoint
from mbq_train.conversion.description import describe, described_conversion
from mbq_train.files import save_json
from mbq_train.quantize.bits import FLOAT
from mbq_train.quantize.weight_bank import WeightBank

from ..options import Options
from ..recipes import recipe_type
from ..training.accuracy import evaluate
from ..training.interrupt import stop_requests
from ..training.loop import State, Training
from .checks import check_run
from .devices import processes
from .folder import (
    ACCURACY,
    CHECKPOINT,
    CONFIG,
    CURVES,
    FLOAT_NETWORK,
    LAYERS,
    METRICS,
    PLAN,
    SCALES,
    check_free,
    load_options,
    locked,
    open_folder,
    standing,
)
from .given import data_given, with_given
from .metrics import Metrics
from .networks import data_and_float_network, made_from, plan_of
from .observer import Observer
from .plots import plot_accuracy, plot_curves, plot_layers, plot_scales
from .start import start


@dataclass(frozen=True)
class Result:
    """Test accuracies in [0, 1], by bit-width and of the float network, and the time of a training step."""

    accuracy: dict[int, float]
    float_accuracy: float
    step_ms: float
    recipe: dict  # what the recipe says of the network


def train_run(options: Options, folder, *, data=None, model: nn.Module | None = None, device: str = "cpu",
              overwrite: bool = False, observer: Observer | None = None, save_every: float = 300.0) -> Result:
    """Train a float network, convert it, train it at every bit-width, and write all of it to `folder`.

    Under torchrun every process calls it and trains on its part of each batch; the first one writes.

    Args:
        options: what to train.
        folder: made when missing. A run in it, finished or not, is an error without `overwrite`.
        data: a Data, or a pair (train, test) as `data_of` takes it, in place of options.data.
        model: a float network in place of options.model; it is converted and trained in place.
        device: 'cpu', 'cuda', 'cuda:N' or 'auto'.
        observer: is told what happens.
        save_every: seconds between two checkpoints within an epoch.

    Raises:
        ValueError: an option is wrong or a run is there already. OSError: the folder cannot be written.
        TrainingError: the loss is NaN or infinite. Interrupted: Ctrl-C or SIGTERM; `resume_run` goes on.
    """
    folder, observer = Path(folder), observer or Observer()
    with processes(device) as device:
        distributed.share_error(lambda: check_free(folder, overwrite))
        if options.start_from and Path(options.start_from).resolve() == folder.resolve():
            raise ValueError(f"train: start_from must be another folder than that of the run, got {folder}")
        data = data_given(data, device)
        options = with_given(options, data, model)
        data, model = data_and_float_network(options, device, data=data, model=model)
        plan = check_run(options, data, model)  # errors now, not after float training
        observer.plan(plan, WeightBank(plan.model, options.bits).nbytes if options.weight_bank else 0)

        def begin():
            open_folder(folder, overwrite)
            (folder / PLAN).write_text(str(plan), encoding="utf-8")
            save_json(folder / CONFIG, {"version": VERSION, **options.to_json()})

        distributed.share_error(begin)
        with locked(folder):
            return _Run(options, folder, data, model, describe(plan.model), observer, save_every).go()


def resume_run(folder, *, data=None, model: nn.Module | None = None, device: str = "cpu",
               observer: Observer | None = None, save_every: float = 300.0) -> Result:
    """Go on with a run that was interrupted or killed, as if it had not been: on CPU with the same metrics, bit by bit.

    Arguments, result and errors as `train_run`: data and a model that were given to it must be given again, the model
    as it was built, in float; ValueError when there is no run, it is finished, or its options or data
    are not those it was started with. Another number of threads or processes than before is a warning: sums are then
    added in another order.
    """
    folder, observer = Path(folder), observer or Observer()
    with processes(device) as device:
        options = load_options(folder / CONFIG)
        data, model = data_and_float_network(options, device, data=data_given(data, device), model=model)
        with locked(folder):
            run = _Run(options, folder, data, model, None, observer, save_every)
            if (folder / CHECKPOINT).exists():
                run.load(standing(folder / CHECKPOINT))
            else:  # killed before its first checkpoint
                run.metrics.reset([])
            return run.go()


class _Run:
    """One run, from where it stands to its end."""

    def __init__(self, options, folder, data, model, conversion, observer, save_every):
        self.options, self.folder, self.data, self.model, self.conversion = options, folder, data, model, conversion
        self.metrics = Metrics(folder / METRICS if distributed.rank() == 0 else None, observer)
        self.observer, self.save_every = observer, save_every
        self.phase, self.state, self.float_accuracy = "float", State(), math.nan
        self.seconds, self.training = 0.0, None  # of the quantized phase

    def load(self, metadata: dict) -> None:
        """Go to where the checkpoint with this metadata stands."""
        if metadata["phase"] == "finished":
            raise ValueError(f"resume_run: folder must hold a run that is not finished, got {self.folder}")
        for name, value in made_from(self.options, self.data).items():
            before = self._comparable(name, value, metadata[name])
            if before != value:
                raise ValueError(f"resume_run: {name} must be what the run was started with, got "
                                 f"{_changed(value, before)} in {self.folder}")
        if metadata["parallel"] != _parallel():
            warnings.warn(f"resume_run: {self.folder} ran with (threads, processes) {metadata['parallel']}, now "
                          f"{_parallel()}: its metrics will differ in the last digits", RuntimeWarning, stacklevel=3)
        self.phase, self.float_accuracy = metadata["phase"], metadata["float_accuracy"]
        self.seconds = metadata["seconds"]
        self.conversion = metadata.get("plan")
        if self.phase == "quantized":
            self._convert()
        tensors = load_checkpoint(self.folder / CHECKPOINT, self.model)
        position = metadata["state"]
        losses = {int(b): loss for b, loss in position.pop("losses").items()}
        self.state = State(**position, losses=losses, tensors=tensors)
        self.metrics.reset(metadata["metrics"])

    def go(self) -> Result:
        options = self.options
        with stop_requests() as stop:
            if self.phase == "float":
                if options.start_from:
                    self._start()
                else:
                    self._train((FLOAT,), options.float_epochs, stop)
                    self.float_accuracy = self._accuracy((FLOAT,))[FLOAT]
                    self._save_float(self.model)
                    self._convert()
                self.phase, self.state = "quantized", State()
            self._train(options.bits, options.epochs, stop)
            return self._finish()

    def _start(self) -> None:
        """Convert the network, with the values of the run that this one starts from."""
        network = copy.deepcopy(self.model)
        self._convert()
        float_network, self.float_accuracy = start(self.model, self.options.start_from, network)
        self._save_float(float_network)

    def _save_float(self, network: nn.Module) -> None:
        if distributed.rank() == 0:
            save_checkpoint(self.folder / FLOAT_NETWORK, network)

    def _train(self, bits, epochs: int, stop) -> None:
        """Train one phase, with a line of metrics and a checkpoint after every epoch."""
        def on_epoch(record):
            distributed.share_from_first(self.model)  # each process has its own running statistics
            if self.phase == "quantized":
                self.seconds += record["seconds"]
            if record["epoch"] % self.options.evaluate_every == 0 or record["epoch"] == epochs:
                record["accuracy"] = self._accuracy(bits)
            self.metrics.add({"phase": self.phase, **record})

        recipe = recipe_type(self.options.recipe if self.phase == "quantized" else "plain")
        recipe = functools.partial(recipe, folder=self.folder, on_probe=self.observer.probe)
        self.training = Training(self.model, self.data, bits, self.options, epochs=epochs, state=self.state,
                                 recipe=recipe)
        self.training.run(on_epoch=on_epoch, on_batch=functools.partial(self.observer.batch, self.phase),
                          save=self._save, save_every=self.save_every, stop=stop)

    def _save(self, state: State, phase: str | None = None) -> None:
        if distributed.rank():
            return
        position = {key: value for key, value in vars(state).items() if key != "tensors"}
        save_checkpoint(self.folder / CHECKPOINT, self.model, state=state.tensors, metadata={
            "phase": phase or self.phase, "state": position, "metrics": self.metrics.records, "seconds": self.seconds,
            "float_accuracy": self.float_accuracy, "parallel": _parallel(), "plan": self.conversion,
            **made_from(self.options, self.data)})

    @staticmethod
    def _comparable(name: str, now: dict, before: dict) -> dict:
        """Return what a checkpoint of any version says the run was made from, with all that this version asks."""
        if name == "options":
            return json.loads(json.dumps(Options.from_json(before).to_json()))
        return {key: before.get(key, value) for key, value in now.items()}

    def _accuracy(self, bits) -> dict[int, float]:
        return {b: evaluate(self.model, self.data, b, batch_size=self.options.batch_size) for b in bits}

    def _convert(self) -> None:
        if self.conversion is None:  # of a run of an earlier version, or killed before its first checkpoint
            self.conversion = describe(plan_of(self.options, self.data, copy.deepcopy(self.model)).apply())
        described_conversion(self.model, self.conversion).apply()

    def _finish(self) -> Result:
        accuracy = self._accuracy(self.options.bits)
        result = Result(accuracy, self.float_accuracy, 1000 * self.seconds / self.training.steps,
                        self.training.recipe.summary())
        self.metrics.add({"phase": "result", **asdict(result)})
        if distributed.rank() == 0:
            plot_accuracy(self.folder / ACCURACY, accuracy, self.float_accuracy, result.recipe.get("layer_bits", {}))
            plot_curves(self.folder / CURVES, self.metrics.records)
            if any("scales" in record for record in self.metrics.records):
                plot_scales(self.folder / SCALES, self.metrics.records)
            if any("layer_bits" in record for record in self.metrics.records):
                plot_layers(self.folder / LAYERS, self.metrics.records)
        self._save(State(), "finished")  # last: it says that the run is finished
        return result


def _changed(now: dict, before: dict) -> str:
    """Return the first entry that differs."""
    name = next(name for name in {**now, **before} if now.get(name) != before.get(name))
    return f"{name} {now.get(name)!r} instead of {before.get(name)!r}"


def _parallel() -> list[int]:
    return [torch.get_num_threads(), distributed.world_size()]
