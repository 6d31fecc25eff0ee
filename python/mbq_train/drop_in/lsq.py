"""The family of learned step size quantization (LSQ): quantizer modules that people write themselves.

A module is known by what it computes, not by its name: it takes one tensor, its only Parameter is a scale, and on
probes that tell all forms apart its values and gradients are, bit for bit, those of a kernel. Probes run on a copy.
"""

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import nn

from .family import Leave, Replace, Verdict
from .lsq_copies import copy_of, is_own_leaf, is_ready, is_set, probing, remembered, settings_of
from .lsq_probes import Form, fit, shape_of, states_of, views
from .replacement import original_forward
from .torch_ao.arithmetic import worthwhile

LIBRARY = "LSQ"
FEWEST = 4096  # elements: below, a call of ours takes as long as the operations that it saves
_SUMS = "the gradient of the scale is a sum in another order"
_found: dict[tuple, Verdict] = {}  # by class, shape of the scale and attributes: a network has many modules that agree


@dataclass(frozen=True)
class Plan:
    """What the forward needs: the name of the scale, the form of the arithmetic and the attributes with which it was
    found, and the buffers of a module that has taken its first values from a batch."""

    scale: str
    form: Form
    settings: tuple[tuple[str, object], ...]
    ready: tuple[tuple[str, object], ...]


def lsq(module: nn.Module) -> Verdict:
    """Return what is to become of `module`, where it is a quantizer with a learned scale."""
    parameters = dict(module.named_parameters())
    if len(parameters) != 1 or not is_own_leaf(module) or "forward" in vars(module):
        return None
    (name, scale), = parameters.items()
    return remembered(_found, module, lambda: _verdict(module, name, scale))


def _verdict(module: nn.Module, name: str, scale: nn.Parameter) -> Verdict:
    with probing(module):
        try:
            twin, ready = _prepared(module, scale)
            settings = settings_of(twin)
            form = fit(twin, name)
        except Exception:  # whatever a stranger's forward raises for inputs that it was not made for
            return None
    if isinstance(form, str):
        return Leave(LIBRARY, form)
    if form is None or settings != settings_of(twin):
        return None
    return Replace(LIBRARY, _forward, plan=Plan(name, form, settings, ready), bound=_SUMS)


def _prepared(module: nn.Module, scale: torch.Tensor) -> tuple[nn.Module, tuple]:
    """Return a copy of `module` after its first batch, and the buffers which that batch changed."""
    twin, before = _after_first_batch(module, scale)
    after = states_of(twin)
    buffers = dict(twin.named_buffers())
    return twin, tuple((name, after[name]) for name in after if name in buffers and after[name] != before.get(name))


def _after_first_batch(module: nn.Module, scale: torch.Tensor) -> tuple[nn.Module, dict[str, object]]:
    """Return a copy of `module` after its first batch, of a shape that it takes, and what its states were before."""
    for view in views(scale):
        twin, shape = copy_of(module), shape_of(view, 512)
        before = states_of(twin)
        with contextlib.suppress(RuntimeError, IndexError):  # made for tensors of other dimensions
            twin(torch.linspace(-1, 1, math.prod(shape)).reshape(shape))
            return twin, before
    raise LookupError("takes no tensor that its scale fits")


def _forward(module, x):
    plan: Plan = module.mbq_plan
    scale = getattr(module, plan.scale)
    if not worthwhile(x, FEWEST) or x.dtype != torch.float32 or scale.dtype != torch.float32 or not is_set(
            module, plan.settings) or not plan.form.fits(x):
        return original_forward(module, x)
    if plan.ready and module.training and (torch.compiler.is_compiling() or not is_ready(module)):
        return original_forward(module, x)
    try:
        return plan.form(x, scale)
    except (RuntimeError, ValueError):  # a value that ours refuses: the module computes with it
        return original_forward(module, x)

