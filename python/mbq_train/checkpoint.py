"""Checkpoints and configurations on disk: safetensors and JSON, written whole or not at all."""

import contextlib
import json
import os
from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn


class CheckpointError(ValueError):
    """A checkpoint or configuration that cannot be read, or is not of this model."""


@contextlib.contextmanager
def atomic_path(path):
    """A path in the same folder to write to; on success it replaces `path`, on any error it is removed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path, model: nn.Module) -> None:
    """Write the state_dict of `model` to `path` as safetensors."""
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))


def load_checkpoint(path, model: nn.Module) -> None:
    """Load what `save_checkpoint` wrote into `model`, all of it or, after an error, nothing.

    Raises:
        CheckpointError (a ValueError), naming the file: it is missing, truncated, no safetensors file, or holds other
        tensors or shapes than `model`.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"load_checkpoint: path must be a file, got {path} (no such file)") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"load_checkpoint: path must be a whole safetensors file, got {path} ({error})") from None
    own = model.state_dict()
    name = type(model).__name__
    for kind, names in (("lacks", own.keys() - tensors.keys()), ("has unknown", tensors.keys() - own.keys())):
        if names:
            raise CheckpointError(f"load_checkpoint: path must be a checkpoint of this {name}, got {path}, which "
                                  f"{kind} {_some(names)}")
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise CheckpointError(f"load_checkpoint: {key} must have shape {tuple(own[key].shape)}, "
                                  f"got {tuple(tensor.shape)} in {path}")
    model.load_state_dict(tensors)


def save_json(path, value: dict) -> None:
    """Write `value` to `path` as indented JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load_json(path) -> dict:
    """Read a JSON object. Raises CheckpointError, naming the file, when it is missing or not one."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"load_json: path must be a file, got {path} (no such file)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"load_json: path must be a JSON file, got {path} ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"load_json: path must hold a JSON object, got {type(value).__name__} in {path}")
    return value


def _some(names) -> str:
    """The first three names and how many more there are."""
    first = sorted(names)[:3]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more
