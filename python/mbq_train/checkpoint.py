"""Checkpoints and configurations on disk: safetensors and JSON, written whole or not at all."""

import contextlib
import copy
import json
import os
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ._packages import required
from .conversion.description import describe, described_conversion
from .files import atomic_path
from .quantize.own_bits import OwnBits


class CheckpointError(ValueError):
    """A checkpoint or configuration that cannot be read, or is not of this model."""


VERSION = 3  # of config.json, of the metadata and of the names of the tensors
READABLE = (2, VERSION)  # 2 does not say how its network was converted
CONVERSION = "conversion"  # the key of what `describe` returned
_STATE = "state/"  # before the names of tensors that are not the model's
_STORABLE = {torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
             torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
             torch.float8_e8m0fnu, torch.float16, torch.bfloat16, torch.float32, torch.float64}


def save_checkpoint(path, model: nn.Module, *, state: dict | None = None, metadata: dict | None = None) -> None:
    """Write the state_dict of `model` to `path` as safetensors, with what `convert` made of it in the header.

    Args:
        state: more tensors by name, which `load_checkpoint` gives back.
        metadata: a JSON object, into the file's header, without the keys 'version' and 'conversion'.

    Raises TypeError, ValueError for what a checkpoint cannot hold, OSError where the file cannot be written.
    """
    required("save_checkpoint", "safetensors")
    import safetensors.torch

    check_state(model)
    header = _header(describe(model), metadata or {})
    for name, value in (state or {}).items():
        check_storable("save_checkpoint", name, value)
    tensors = model.state_dict() | {_STATE + name: tensor for name, tensor in (state or {}).items()}
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, header)
        except safetensors.SafetensorError as error:  # such as a full disk
            raise OSError(f"save_checkpoint: {path} could not be written ({error})") from error


def _header(description: dict | None, metadata: dict) -> dict[str, str]:
    """Return the header of a checkpoint. Raises TypeError, ValueError for metadata that it cannot hold."""
    own = {"version": VERSION, CONVERSION: description}
    try:
        text = json.dumps(own | metadata)
    except TypeError as error:
        raise TypeError(f"save_checkpoint: metadata must be a JSON object, got {metadata!r} ({error})") from error
    if taken := own.keys() & metadata.keys():
        raise ValueError(f"save_checkpoint: metadata must leave {_some(taken)} to the checkpoint, got {metadata!r}")
    return {"mbq": text}


def check_state(model: nn.Module, function: str = "save_checkpoint") -> None:
    """Raise TypeError for what is no module, ValueError for a state_dict that a checkpoint cannot hold, as
    `check_storable` says of each entry."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be an nn.Module, got {type(model).__name__}")
    for name, value in model.state_dict().items():
        check_storable(function, name, value)


def check_storable(function: str, name: str, value) -> None:
    """Raise ValueError, naming the entry of a state_dict, unless it is a dense tensor of a dtype of safetensors."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{function}: {name} must be a tensor, got {type(value).__name__}; get_extra_state can return "
                         "one")
    if kind := not_dense(value) or (None if value.dtype in _STORABLE else value.dtype):
        raise ValueError(f"{function}: {name} must be a dense, real tensor, got {kind}; a buffer that is no part of "
                         "the state is registered with persistent=False")


def not_dense(tensor: torch.Tensor) -> str | None:
    """Return what `tensor` is where it is not dense, with an element in memory for each place; None where it is."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return "a nested tensor" if tensor.is_nested else f"layout {tensor.layout}"
    if tensor.is_meta:
        return "one on device meta"
    return type(tensor).__name__ if is_traceable_wrapper_subclass(tensor) else None


def load_checkpoint(path, model: nn.Module) -> dict[str, torch.Tensor]:
    """Load what `save_checkpoint` wrote into `model`, all of it or, after an error, nothing; return its `state`.

    Raises:
        CheckpointError (a ValueError), naming the file: it is missing, truncated, no checkpoint, of another version,
        or holds other tensors or shapes than `model`. ValueError for a `model` of which there is no checkpoint.
    """
    check_state(model, "load_checkpoint")
    _, tensors, state = _contents("load_checkpoint", path)
    _check_fit("load_checkpoint", path, tensors, model)
    model.load_state_dict(tensors)
    return state


def _contents(function: str, path) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the metadata of a checkpoint, the tensors of its model, and its state."""
    with _opened(function, path) as file:
        metadata = _metadata_of(function, path, file)
        every = {name: file.get_tensor(name) for name in file.keys()}
    state = {name.removeprefix(_STATE): tensor for name, tensor in every.items() if name.startswith(_STATE)}
    return metadata, {name: tensor for name, tensor in every.items() if not name.startswith(_STATE)}, state


def _check_fit(function: str, path, tensors: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Raise CheckpointError unless `tensors`, those of an earlier version brought up to this one, are those of `model`.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, OwnBits):
            module.update_state(tensors, f"{prefix}." if prefix else "", torch.zeros(()))
    own = model.state_dict()
    for kind, names in (("lacks", own.keys() - tensors.keys()), ("has unknown", tensors.keys() - own.keys())):
        if names:
            raise CheckpointError(f"{function}: path must be a checkpoint of this {type(model).__name__}, got {path}, "
                                  f"which {kind} {_some(names)}")
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise CheckpointError(f"{function}: {key} must have shape {tuple(own[key].shape)}, "
                                  f"got {tuple(tensor.shape)} in {path}")


def load_quantized(path, model: nn.Module) -> nn.Module:
    """Convert `model` as the network in a checkpoint was converted, load its tensors, and return it in eval mode.

    Neither an example nor a data set is needed: the decisions of `convert` and its specs are in the file.

    Args:
        path: what `save_checkpoint` wrote of a converted network.
        model: a float network, built as the one that was converted; converted in place.

    Raises CheckpointError as `load_checkpoint`, and for a file that does not say how its network was converted: that of
    a float or deployed network, of one whose parts were converted by several calls, or of version 2; `load_checkpoint`
    reads them into a network that you have made. Nothing is converted then.
    """
    check_state(model, "load_quantized")
    metadata, tensors, _ = _contents("load_quantized", path)
    description = metadata.get(CONVERSION)
    if description is None:
        raise CheckpointError(f"load_quantized: path must say how its network was converted, got {path}, which holds a "
                              "float or deployed network, one converted in parts, or is of an earlier version; "
                              "load_checkpoint reads it into a network that you have made")
    try:
        plan = described_conversion(model, description)
        converted = described_conversion(_without_memory(model), description).apply()
    except ValueError as error:
        raise CheckpointError(f"load_quantized: path must hold a network that is built as model, got {path} "
                              f"({error})") from error
    _check_fit("load_quantized", path, tensors, converted)
    plan.apply().load_state_dict(tensors)
    return model.eval()


def _without_memory(model: nn.Module) -> nn.Module:
    """Return a copy of `model` whose tensors are on device meta: nothing but names and shapes."""
    memo = {id(tensor): tensor.detach().to("meta") for tensor in model.buffers()}
    memo |= {id(tensor): nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
             for tensor in model.parameters()}
    return copy.deepcopy(model, memo)


def load_metadata(path) -> dict:
    """Return the metadata that `save_checkpoint` wrote. Raises CheckpointError as `load_checkpoint` does."""
    with _opened("load_metadata", path) as file:
        return _metadata_of("load_metadata", path, file)


@contextlib.contextmanager
def _opened(function: str, path):
    safetensors = required(function, "safetensors")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{function}: path must be a str or a Path, got {type(path).__name__}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{function}: path must be a file, got {path} (no such file)") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{function}: path must be a whole safetensors file, got {path} ({error})") from None


def _metadata_of(function: str, path, file) -> dict:
    try:
        metadata = json.loads((file.metadata() or {}).get("mbq", "null"))
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{function}: path must be a checkpoint of mbq_train, got {path} without its metadata")
    if metadata.get("version") not in READABLE:
        raise CheckpointError(f"{function}: version must be {' or '.join(map(str, READABLE))}, got "
                              f"{metadata.get('version')!r} in {path}")
    return metadata


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
    """Return the first three names and how many more there are."""
    first = sorted(names)[:3]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more
