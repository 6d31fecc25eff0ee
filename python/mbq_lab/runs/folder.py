"""The folder of a run: its files, who may write to it, and where it stands."""

import contextlib
import fcntl
from pathlib import Path

from mbq_train import distributed
from mbq_train.checkpoint import READABLE, CheckpointError, load_json, load_metadata

from ..options import Options
from ..training.traces import TRACES

CONFIG, METRICS, FLOAT_NETWORK, CHECKPOINT = ("config.json", "metrics.jsonl", "float.safetensors",
                                              "checkpoint.safetensors")
ACCURACY, CURVES, PLAN = "accuracy.png", "curves.png", "conversion.txt"
LAYERS, SENSITIVITY, SCALES = "layers.png", "sensitivity.png", "scales.png"
SCORES, HISTOGRAM, SHEET = "scores.parquet", "scores.png", "images.png"
TRANSFER, TRANSFER_PLOT = "transfer.json", "transfer.png"
SEARCH, SEARCH_PLOT, SEARCH_NETWORK = "search.json", "search.png", "search.safetensors"
_FILES = (CONFIG, CHECKPOINT, FLOAT_NETWORK, METRICS, ACCURACY, CURVES, PLAN, LAYERS, TRACES, SENSITIVITY, SCALES,
          SCORES, HISTOGRAM, SHEET, TRANSFER, TRANSFER_PLOT, SEARCH, SEARCH_PLOT,
          SEARCH_NETWORK)  # config first: without it there is no run
_PHASES = ("float", "quantized", "finished")
_STANDING = {"state", "metrics", "seconds", "float_accuracy", "parallel", "options", "data"}  # in a checkpoint's header


def check_folder(function: str, folder: Path) -> None:
    """Raise ValueError where something else stands in the place of `folder`."""
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"{function}: folder must be a folder, got a file, {path}")
            return


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise ValueError where no run can begin in `folder`."""
    check_folder("train_run", folder)
    if (folder / CONFIG).exists() and not overwrite:
        finished = (folder / CHECKPOINT).exists() and standing(folder / CHECKPOINT)["phase"] == "finished"
        state, way = ("a finished", "") if finished else ("an unfinished", "mbq resume goes on with it, ")
        raise ValueError(f"train_run: folder must not hold {state} run, got {folder} ({way}--overwrite replaces it)")


def open_folder(folder: Path, overwrite: bool) -> None:
    """Make `folder`, and take the files of an earlier run out of it."""
    check_free(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*(folder / name for name in _FILES), *folder.glob("events.out.tfevents.*")):  # TensorBoard's too
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path):
    """Keep the folder for this run alone, as long as the block lasts."""
    with (folder / CONFIG).open() as file:
        if distributed.rank() == 0:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"train_run: folder must not be in use by another process, got {folder}") from None
        yield


def standing(file: Path) -> dict:
    """Return where a run stands: the metadata of its checkpoint `file`."""
    metadata = load_metadata(file)
    if "phase" not in metadata:
        raise CheckpointError(f"load_metadata: path must be the checkpoint of a run, got {file}, which holds a network "
                              "alone")
    if metadata["phase"] not in _PHASES or (missing := _STANDING - metadata.keys()):
        wrong = f"phase {metadata['phase']!r}" if metadata["phase"] not in _PHASES else f"no {min(missing)}"
        raise CheckpointError(f"load_metadata: path must be the checkpoint of a run, got {file} with {wrong}")
    return metadata


def load_options(path) -> Options:
    """Return the Options in a config.json. Raises CheckpointError, naming the file and what is wrong in it."""
    if not Path(path).is_file():
        raise CheckpointError(f"load_options: no run in {Path(path).parent}: {CONFIG} (no such file)")
    values = load_json(path)
    version = values.pop("version", None)
    if version not in READABLE:
        raise CheckpointError(f"load_options: version must be {' or '.join(map(str, READABLE))}, got {version!r} in "
                              f"{path}")
    try:
        return Options.from_json(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"load_options: {path} is not a configuration of this version ({error})") from None
