"""The data and the networks of a run: as it begins, and from its checkpoints."""

from pathlib import Path

import torch
from mbq_train import distributed
from mbq_train.checkpoint import CheckpointError, load_checkpoint
from mbq_train.conversion.convert import plan_conversion
from mbq_train.conversion.plan import Conversion
from mbq_train.quantize.bits import quantized
from torch import nn

from ..data import Data, load_data
from ..models import build_model
from ..options import Options
from .devices import check_device
from .folder import CHECKPOINT, CONFIG, load_options, standing


def data_and_float_network(options: Options, device: torch.device) -> tuple[Data, nn.Module]:
    """Return the data and a float network on `device`."""
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


def example_images(data: Data, images: int = 2) -> torch.Tensor:
    """Return a few test images."""
    return next(data.test_batches(min(images, data.test_size))).images


def plan_of(options: Options, data: Data, model: nn.Module, bits=None) -> Conversion:
    """Return what the options make of `model`, at their bit-widths or others."""
    return plan_conversion(model, bits or quantized(options.bits), weights=options.weights,
                           activations=options.activations, example=example_images(data),
                           batch_norm=options.batch_norm, keep_float=options.keep_float)


def load_quantized(folder) -> tuple[nn.Module, Data]:
    """Return the network of a run as it was at its last checkpoint, in eval mode on the CPU, and its data.

    Raises as `evaluate_run`.
    """
    _, data, model = load_data_and_network(folder)
    return model, data


def load_data_and_network(folder, device: str = "cpu") -> tuple[Options, Data, nn.Module]:
    """Return a run's options, its data, and its network as it was at its last checkpoint. Raises as `evaluate_run`."""
    folder = Path(folder)
    options = load_options(folder / CONFIG)
    data, model = data_and_float_network(options, check_device(device))
    return options, data, quantized_network(folder, options, data, model).eval()


def quantized_network(folder: Path, options: Options, data: Data, model: nn.Module) -> nn.Module:
    """Convert the float network of a run and load its last checkpoint. Raises as `evaluate_run`."""
    if standing(folder)["phase"] == "float":
        raise CheckpointError(f"evaluate_run: folder must hold a network trained at several bit-widths, got {folder}, "
                              "which is still training its float network")
    model = plan_of(options, data, model).apply()
    load_checkpoint(folder / CHECKPOINT, model)
    return model
