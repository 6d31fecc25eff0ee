"""Copies of strangers' modules to probe, without anything that its owner would notice."""

import contextlib
import copy
import dataclasses
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum

import torch
from torch import nn

from ..quantize.bits import same_random_numbers
from .lsq_probes import states_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, type(None), Enum)


@contextlib.contextmanager
def probing(module: nn.Module) -> Iterator[None]:
    """Leave no random number, print or warning of the probes behind, and compute with gradients."""
    with (warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), same_random_numbers(module),
          torch.inference_mode(False), torch.enable_grad()):
        warnings.simplefilter("ignore")
        yield


def copy_of(module: nn.Module, instead: dict[int, nn.Parameter] | None = None) -> nn.Module:
    """Return a copy of `module` in training, on the CPU, without hooks; `instead`: Parameters that it gets, by the id
    of those that they replace."""
    hooks = {id(getattr(module, name)): OrderedDict() for name in _HOOKS}
    return copy.deepcopy(module, {**(instead or {}), **hooks}).cpu().requires_grad_(True).train()


def settings_of(module: nn.Module) -> tuple[tuple[str, object], ...]:
    """Return attributes of `module`, other than its mode, that are plain values or hold plain values."""
    return tuple((name, copy.copy(value)) for name, value in vars(module).items() if name != "training" and (
        name[0] != "_" and _is_plain(value)))


def _is_plain(value: object) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
    return all(isinstance(part, _PLAIN) for part in parts)


def remembered(found: dict, module: nn.Module, judge: Callable[[], object]) -> object:
    """Return judge(), or what it said of a module that agrees in class, shapes, attributes and buffers; where these are
    not all plain values, as with an object of options, every module is judged by itself."""
    plain = {name for name, value in settings_of(module) if not isinstance(value, (dict, list))} | {"training"}
    if any(name[0] != "_" and name not in plain for name in vars(module)) or any(
            buffer.numel() != 1 for buffer in module.buffers()):
        return judge()
    shapes = tuple((name, value.shape) for name, value in module.named_parameters())
    key = type(module), shapes, settings_of(module), tuple(states_of(module).items())
    if key not in found:
        found[key] = judge()
    return found[key]


def is_set(module: nn.Module, settings: tuple[tuple[str, object], ...]) -> bool:
    """Return whether `module` has these attributes."""
    return all(getattr(module, name, None) == value for name, value in settings)


def is_own_leaf(module: nn.Module) -> bool:
    """Return whether `module` has a forward that is not torch's, no children, and float32 Parameters with values."""
    if type(module).__module__.partition(".")[0] == "torch" or type(module).forward is nn.Module.forward:
        return False
    return not any(True for _ in module.children()) and all(
        value.dtype == torch.float32 and value.device.type != "meta" for value in module.parameters())


def is_ready(module: nn.Module) -> bool:
    """Return whether `module` has taken its first values, which its plan knows as `ready`: values of buffers. Once it
    has, it is not asked again."""
    plan = module.mbq_plan
    seen = states_of(module, {name for name, _ in plan.ready})
    if any(seen.get(name) != value for name, value in plan.ready):
        return False
    module.mbq_plan = dataclasses.replace(plan, ready=())
    return True


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two gradients may be one sum in two orders."""
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
