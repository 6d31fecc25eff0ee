"""The data and the networks of a run: as it begins, and from its checkpoints."""

import json
import os
from pathlib import Path

import torch
from torch import nn

import mbq_train
from mbq_train import distributed
from mbq_train.batches import Batch
from mbq_train.checkpoint import CONVERSION, VERSION, CheckpointError, load_checkpoint
from mbq_train.conversion.convert import plan_conversion
from mbq_train.conversion.plan import Conversion
from mbq_train.quantize.bits import quantized

from ..data import Data, load_data
from ..models import build_model
from ..options import Options
from .devices import check_device
from .folder import CHECKPOINT, CONFIG, load_options, standing
from .given import check_given

_CALIBRATION_BATCHES = 8


def data_and_float_network(options: Options, device: torch.device, *, data: Data | None = None,
                           model: nn.Module | None = None) -> tuple[Data, nn.Module]:
    """Return the data and a float network on `device`: those that are given, or those that the options name."""
    check_given(options, data=data, model=model)
    if options.cuda_graph and device.type != "cuda":
        raise ValueError(f"train: cuda_graph must be off without a CUDA device, got {device}")
    if data is None:
        data = load_data(options.data, augment=options.augment, train_limit=options.train_limit or None,
                         test_limit=options.test_limit or None, image_size=options.image_size or None,
                         workers=options.workers, device=device)
    torch.manual_seed(options.seed)
    if model is None:
        model = build_model(options.model, classes=data.classes, in_channels=data.in_channels,
                            image_size=data.image_size)
    model = model.to(device)
    distributed.share_from_first(model)
    return data, model


def example_images(data: Data, images: int = 2) -> torch.Tensor:
    """Return a few test images."""
    return next(data.test_batches(min(images, data.test_size))).images


def calibration_batches(options: Options, data: Data) -> list[Batch]:
    """Return the first batches of training images that statistics and losses are estimated from."""
    batches = data.train_batches(options.batch_size, seed=options.seed, epoch=0)
    return [batch for batch, _ in zip(batches, range(_CALIBRATION_BATCHES), strict=False)]


def plan_of(options: Options, data: Data, model: nn.Module, bits=None) -> Conversion:
    """Return what the options make of `model`, at their bit-widths or others."""
    return plan_conversion(model, bits or quantized(options.bits), weights=options.weights,
                           activations=options.activations, example=example_images(data),
                           batch_norm=options.batch_norm, keep_float=options.keep_float)


def load_quantized(path, model: nn.Module | None = None) -> nn.Module:
    """Return the network of a run as it was at its last checkpoint, in eval mode on the CPU. Its data are not needed.

    Args:
        path: the folder of a run, or its checkpoint.
        model: a float network, built as that of the run [built as the run's options say].

    Raises as `evaluate_run`. A checkpoint of version 2 does not say how its network was converted: its data set is
    opened then.
    """
    file = _checkpoint_of(path)
    metadata = _quantized_metadata(file)
    if metadata.get(CONVERSION) is not None:
        return mbq_train.load_quantized(file, _float_network(metadata) if model is None else model)
    data, built = data_and_float_network(_options(metadata), torch.device("cpu"))
    model = plan_of(_options(metadata), data, built if model is None else model).apply()
    load_checkpoint(file, model)
    return model.eval()


def input_shape(path) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that the network of a run takes; path as for load_quantized."""
    metadata = _quantized_metadata(_checkpoint_of(path))
    if facts := _facts(metadata):
        return facts["in_channels"], *facts["image_size"]
    data, _ = data_and_float_network(_options(metadata), torch.device("cpu"))
    return data.in_channels, *data.image_size


def load_data_and_network(folder, device: str = "cpu") -> tuple[Options, Data, nn.Module]:
    """Return a run's options, its data, and its network as it was at its last checkpoint. Raises as `evaluate_run`."""
    folder, device = Path(folder), check_device(device)
    options = load_options(folder / CONFIG)
    data, model = data_and_float_network(options, device)
    return options, data, load_quantized(folder, model)


def made_from(options: Options, data: Data) -> dict:
    """Return what a run is made from, as its checkpoints keep it: options and facts of its data."""
    facts = {"name": data.name, "classes": data.classes, "train_size": data.train_size, "test_size": data.test_size,
             "in_channels": data.in_channels, "image_size": list(data.image_size)}
    return {"options": json.loads(json.dumps(options.to_json())), "data": facts}


def _checkpoint_of(path) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"load_quantized: path must be a str or a Path, got {type(path).__name__}")
    path = Path(path)
    if path.is_file():
        return path
    load_options(path / CONFIG)  # which says where there is no run
    return path / CHECKPOINT


def _quantized_metadata(file: Path) -> dict:
    metadata = standing(file)
    if metadata["phase"] == "float":
        raise CheckpointError(f"load_quantized: path must hold a network trained at several bit-widths, got {file}, "
                              "which is still training its float network")
    try:
        _options(metadata)
        _facts(metadata)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise CheckpointError(f"load_quantized: path must be the checkpoint of a run, got {file} with an error in its "
                              f"options or the facts of its data ({type(error).__name__}: {error})") from error
    return metadata


def _options(metadata: dict) -> Options:
    return Options.from_json(metadata["options"])


def _facts(metadata: dict) -> dict | None:
    """Return the facts of the data; None for a run that did not keep the shape of its images."""
    facts = metadata["data"]
    if metadata["version"] < VERSION and "in_channels" not in facts:
        return None
    height, width = facts["image_size"]
    for name, value in {"classes": facts["classes"], "in_channels": facts["in_channels"], "height": height,
                        "width": width}.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return facts


def _float_network(metadata: dict) -> nn.Module:
    """Return the float network of a run, untrained."""
    facts, options = _facts(metadata), _options(metadata)
    check_given(options, model=None)
    return build_model(options.model, classes=facts["classes"], in_channels=facts["in_channels"],
                       image_size=tuple(facts["image_size"]))
