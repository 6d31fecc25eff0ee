"""The devices and processes of a run."""

import contextlib

import torch

from mbq_train import distributed
from mbq_train._errors import first_line


def check_device(name: str) -> torch.device:
    """Return torch.device(name), once tensors can be made there; of auto cuda where there is one. Raises ValueError
    otherwise."""
    name = _found(name)
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"check_device: device must be cpu, cuda, cuda:N or auto, got {name!r}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ValueError(f"check_device: device must be usable here, got {name!r} ({first_line(error)})") from None


@contextlib.contextmanager
def processes(device: str):
    """Yield the device of this process, in torchrun's process group where there is one."""
    with distributed.process_group(_found(device)) as name:
        yield check_device(name)


def _found(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
