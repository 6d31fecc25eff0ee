"""Trackers of experiments as observers: TensorBoard and Weights & Biases, by their own libraries."""

import importlib
from pathlib import Path

from mbq_train._names import look_up

from ..options import Options
from ..runs.names import network_name
from ..runs.observer import Observer


def trackers_of(names: str, folder, options: Options) -> list[Observer]:
    """Return the trackers that `names`, separated by commas, asks for; 'none' asks for none. Raises ValueError for an
    unknown name or a package that is missing."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if wanted == ["none"]:
        return []
    kinds = [look_up("train", _TRACKERS, name, argument="trackers") for name in wanted]
    return [kind(Path(folder), options) for kind in kinds]


def scalars(record: dict) -> dict[str, float]:
    """Return the numbers of a line of metrics by their names, as `quantized/accuracy/4 bits`."""
    found = {}
    for name, value in record.items():
        if isinstance(value, dict):
            of_bits = name in ("loss", "accuracy")
            found |= {f"{name}/{network_name(int(key)) if of_bits else key}": number for key, number in value.items()
                      if isinstance(number, (int, float))}
        elif isinstance(value, (int, float)) and name != "epoch":
            found[name] = value
    return {f"{record['phase']}/{name}": float(number) for name, number in found.items()}


class TensorBoard(Observer):
    """Scalars over the epochs of each phase, in the run's folder: tensorboard --logdir RUN."""

    def __init__(self, folder: Path, options: Options):
        self.folder, self.writer = folder, None
        self.library = _package("torch.utils.tensorboard", "tensorboard")

    def record(self, record):
        if self.writer is None:  # not before there is a run: its folder must be free
            self.writer = self.library.SummaryWriter(str(self.folder))
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record.get("epoch", 0))

    def close(self):
        if self.writer is not None:
            self.writer.close()


class WeightsAndBiases(Observer):
    """Scalars of every record, and the options, in a run of the project mbq."""

    def __init__(self, folder: Path, options: Options):
        self.folder, self.options, self.run = folder, options, None
        self.library = _package("wandb", "wandb")

    def record(self, record):
        if self.run is None:
            self.run = self.library.init(project="mbq", name=self.folder.name, dir=str(self.folder),
                                         config=self.options.to_json())
        self.run.log({**scalars(record), "epoch": record.get("epoch", 0)})

    def close(self):
        if self.run is not None:
            self.run.finish()


def _package(module: str, package: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"train: trackers must be installed, got {package}, which is not: pip install {package}"
                         ) from None


_TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
