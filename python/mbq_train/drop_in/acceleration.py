"""accelerate: put fused kernels in the place of other libraries' fake-quantizers; restore: take them out again."""

import warnings
from collections.abc import Iterator

import torch
from torch import nn

from .family import Family, Leave, Replace
from .replacement import Accelerated, replace, undo
from .report import Entry, Report

FAMILIES: tuple[Family, ...] = ()


def accelerate(model: nn.Module) -> Report:
    """Replace the fake-quantizers of `model`, in place, by fused kernels that compute the same.

    Known are the quantizers of torch.ao, torchao and Brevitas, and modules that compute what learned step size
    quantization (LSQ) does, whatever their names. Parameters, buffers, names in state dicts, hooks and the training
    mode stay, as does what isinstance says of every module; so optimizers, checkpoints and the libraries' own ways to
    convert a trained model go on working. Outputs and gradients are the same bit for bit; where they are not, the
    report states the bound. What cannot be the same is left alone and named. A second call is as good as one.

    Args:
        model: any module. Compiled and scripted (sub)modules are left alone.

    Returns:
        Report: an entry for every fake-quantizer; print it.

    Warns: RuntimeWarning, when there is nothing to replace. Raises: TypeError, when `model` is no module.
    """
    _check_module("accelerate", model)
    restore(model)
    entries = []
    for name, module, verdict in _judged(model, ""):
        if isinstance(verdict, Replace):
            replace(module, verdict.forward, verdict.plan)
            entry = (verdict.library, "replaced", verdict.bound)
        else:
            entry = (verdict.library, "left", verdict.reason)
        entries.append(Entry(name, type(module).__name__, *entry))
    report = Report(tuple(entries))
    if not report.replaced:
        warnings.warn(f"accelerate: model should hold a fake-quantizer that can be replaced, got {_found(report)}",
                      RuntimeWarning, stacklevel=2)
    return report


def restore(model: nn.Module) -> int:
    """Undo accelerate, in place: every module has its own class and forward again. Return how many there were."""
    _check_module("restore", model)
    replaced = [module for module in model.modules() if isinstance(module, Accelerated)]
    for module in replaced:
        undo(module)
    return len(replaced)


def _judged(module: nn.Module, name: str, seen: set | None = None) -> Iterator[tuple[str, nn.Module, Replace | Leave]]:
    """Yield (name, module, verdict) of every fake-quantizer at or below `module`, each once."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    verdict = _verdict(module)
    if verdict is not None:
        yield name, module, verdict
    if verdict is None or isinstance(verdict, Replace) and not verdict.whole:
        for child_name, child in module.named_children():
            yield from _judged(child, f"{name}.{child_name}".lstrip("."), seen)


def _verdict(module: nn.Module) -> Replace | Leave | None:
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        kind = "scripted" if isinstance(module, torch.jit.ScriptModule) else "compiled"
        return Leave("torch", f"{kind}: accelerate the model before")
    verdict = next(filter(None, (family(module) for family in FAMILIES)), None)
    if isinstance(verdict, Replace) and "forward" in vars(module):
        return Leave(verdict.library, "has a forward of its own instance")
    if isinstance(verdict, Replace) and module._compiled_call_impl is not None:
        return Leave(verdict.library, "compiled: accelerate the model before")
    return verdict


def _found(report: Report) -> str:
    if not report.left:
        return "none"
    return "; ".join(f"{entry.name or 'model'} ({entry.type}): {entry.why}" for entry in report.left[:3])


def _check_module(function: str, model) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")
