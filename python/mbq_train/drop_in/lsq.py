"""The family of learned step size quantization (LSQ): quantizer modules that people write themselves.

A module is known by what it computes, not by its name: it takes one tensor, its only Parameter is a scale, and on
probes that tell all forms apart its values and gradients are, bit for bit, those of a kernel. Probes run on a copy.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .family import Leave, Replace, Verdict
from .lsq_copies import copy_of, is_own_leaf, is_ready, is_set, probing, remembered, settings_of
from .lsq_probes import Form, fit, states_of
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
    twin = copy_of(module)
    before = states_of(twin)
    twin(torch.linspace(-1, 1, 64 * max(scale.numel(), 1)).reshape(_shape_for(scale)))
    after = states_of(twin)
    buffers = dict(twin.named_buffers())
    return twin, tuple((name, after[name]) for name in after if name in buffers and after[name] != before.get(name))


def _shape_for(scale: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of 64 elements a scale, with the dimensions that the scale has."""
    if scale.numel() == 1:
        return 8, 8
    return tuple(size if size != 1 else 64 if axis == scale.dim() - 1 else 1 for axis, size in enumerate(scale.shape))


def _forward(module, x):
    plan: Plan = module.mbq_plan
    scale = getattr(module, plan.scale)
    if not worthwhile(x, FEWEST) or x.dtype != torch.float32 or scale.dtype != torch.float32 or not is_set(
            module, plan.settings):
        return original_forward(module, x)
    if plan.ready and module.training and (torch.compiler.is_compiling() or not is_ready(module)):
        return original_forward(module, x)
    try:
        return plan.form(x, scale)
    except (RuntimeError, ValueError):  # a value that ours refuses: the module computes with it
        return original_forward(module, x)

