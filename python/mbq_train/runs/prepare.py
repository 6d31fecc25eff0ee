"""What a run is made of: device, processes, data, float network and the plan of its conversion."""

import contextlib

import torch
from torch import nn

from .. import distributed
from .._errors import first_line
from ..conversion.convert import plan_conversion
from ..data import Data, load_data
from ..models import build_model
from ..options import Options
from ..quantize.bits import quantized


def check_device(name: str) -> torch.device:
    """Return torch.device(name), once tensors can be made there. Raises ValueError otherwise."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"check_device: device must be cpu, cuda or cuda:N, got {name!r}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ValueError(f"check_device: device must be usable here, got {name!r} ({first_line(error)})") from None


@contextlib.contextmanager
def processes(device: str):
    """Yield the device of this process, in torchrun's process group where there is one."""
    with distributed.process_group(device) as name:
        yield check_device(name)


def is_writer() -> bool:
    """Return whether this process writes the run's files: the first of them."""
    return distributed.rank() == 0


def prepare(options: Options, device: torch.device) -> tuple[Data, nn.Module]:
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


def plan_of(options: Options, data: Data, model: nn.Module, bits=None):
    """Return what the options make of `model`, at their bit-widths or others."""
    return plan_conversion(model, bits or quantized(options.bits), example=example_images(data),
                           batch_norm=options.batch_norm, keep_float=options.keep_float,
                           learn_offset=options.learn_offset, quantizer=options.quantizer,
                           weight_correction=options.weight_correction, rounding=options.rounding,
                           scale_chain=options.scale_chain, shared_sum=options.shared_sum, normalise=options.normalise,
                           form=options.form, activation_bits=options.activation_bits or None)
