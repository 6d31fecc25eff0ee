"""The family of layers with learned step sizes: linear layers and convolutions that quantize inside their forward.

A layer is known by what it computes: a mode catches what its forward gives to F.linear or F.conv*, and weight and
input there are compared, bit for bit, with a kernel's results, as lsq does for quantizers that are modules. Probes run
on a copy, whose weight is small.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from .family import Leave, Replace, Verdict
from .lsq import LIBRARY
from .lsq_calls import Scaled, call_of, scaled
from .lsq_copies import copy_of, is_own_leaf, is_ready, is_set, near, probing, remembered, settings_of
from .lsq_probes import states_of
from .replacement import original_forward
from .torch_ao.arithmetic import worthwhile

_BOUND = "the gradients of the scales are sums in another order"
FEWEST = 8192  # elements: below, what a call of ours costs is what it saves
_found: dict[tuple, Verdict] = {}  # by class, shapes and attributes: a network has many layers that agree


@dataclass(frozen=True)
class Plan:
    """What the forward needs: how weight and input are quantized (None: as they are), the function that takes them and
    its other arguments, names of the weight, of the bias given and of the bias added after.

    settings: attributes with which all this was found. ready: values of buffers once the first batch has been seen.
    """

    weight: str
    weight_scaled: Scaled | None
    input_scaled: Scaled | None
    function: str
    options: tuple[tuple[str, object], ...]
    bias: str | None
    added: str | None
    settings: tuple[tuple[str, object], ...]
    ready: tuple[tuple[str, object], ...] = ()


def lsq_layers(module: nn.Module) -> Verdict:
    """Return what is to become of `module`, where it is a layer that quantizes with learned scales."""
    parameters = dict(module.named_parameters(recurse=False))
    wide = [name for name, value in parameters.items() if value.dim() >= 2 and value.numel() > value.shape[0]]
    if len(wide) != 1 or not 2 <= len(parameters) <= 4 or not is_own_leaf(module):
        return None
    return remembered(_found, module, lambda: _verdict(module, wide[0]))


def _verdict(module: nn.Module, weight: str) -> Verdict:
    plan = None
    with probing(module):
        for channels in (24, None) if getattr(module, "groups", 1) == 1 else (None,):
            try:
                twin = _twin(module, weight, channels)
                ready = _after_first_batch(twin, weight)
                plan = ready if isinstance(ready, str) else _plan(twin, weight, ready)
                break
            except Exception:  # whatever a stranger's forward raises for inputs that it was not made for
                plan = None
    if isinstance(plan, Plan):
        return Replace(LIBRARY, _forward, plan=plan, bound=_BOUND)
    return plan and Leave(LIBRARY, plan)


def _twin(module: nn.Module, weight: str, channels: int | None) -> nn.Module:
    """Return a copy of `module` to probe, with few inputs, at most so many outputs and scales of 1/4."""
    outputs, few = getattr(module, weight).shape[0], {}
    for name, value in module.named_parameters():
        inputs = slice(8) if name == weight else slice(None)
        if value.dim():
            rows = slice(channels) if value.shape[0] == outputs else slice(None)
            few[id(value)] = nn.Parameter(value.detach()[(rows, *[inputs] * (value.dim() - 1))].clone())
    twin = copy_of(module, few)
    with torch.no_grad():
        for name, value in twin.named_parameters():
            value.copy_(torch.randn(value.shape) if name == weight else torch.full_like(value, 0.25))
    return twin


def _after_first_batch(twin: nn.Module, weight: str) -> tuple | str:
    """Run a batch; return which buffers of one element it changed, with their values; the reason why a layer that goes
    on changing cannot be replaced."""
    before = states_of(twin)
    twin(sample(getattr(twin, weight), twin))
    after, all_after = states_of(twin), copy.deepcopy(twin.state_dict())
    settings = settings_of(twin)
    twin(sample(getattr(twin, weight), twin, 3))
    if settings != settings_of(twin) or any(not torch.equal(v, all_after[k]) for k, v in twin.state_dict().items()):
        return "changes its own state at every call"
    buffers = {name for name, _ in twin.named_buffers()}
    return tuple((name, after[name]) for name in after if name in buffers and after[name] != before.get(name))


def sample(weight: torch.Tensor, layer: nn.Module, batch: int = 2) -> torch.Tensor:
    """Return an input that goes with `weight`."""
    groups = getattr(layer, "groups", 1)
    return torch.randn(batch, weight.shape[1] * groups, *(size + 7 for size in weight.shape[2:]))


def _plan(twin: nn.Module, weight: str, ready: tuple) -> Plan | str | None:
    x = sample(getattr(twin, weight), twin)
    caught = call_of(twin, weight, getattr(twin, weight), x)
    parameters = dict(twin.named_parameters())
    bias = _name_of(caught.options.pop("bias", None), parameters)
    if any(isinstance(value, torch.Tensor) for value in caught.options.values()):
        return None
    names = [name for name in parameters if name not in (weight, bias)]
    of_weight = scaled(twin, weight, names, x, "weight") if caught.weight is not parameters[weight] else None
    if isinstance(of_weight, str):
        return of_weight
    names = [name for name in names if of_weight is None or name != of_weight.name]
    of_input = scaled(twin, weight, names, x, "input") if caught.input is not x else None
    if of_weight is None and of_input is None:
        return None
    if isinstance(of_input, str) or of_input is None and caught.input is not x:
        return of_input or "changes its input in a way that no kernel has"
    if of_weight is None and caught.weight is not parameters[weight]:
        return "changes its weight in a way that no kernel has"
    for added in (None, *(name for name in names if of_input is None or name != of_input.name)):
        plan = Plan(weight, of_weight, of_input, caught.function, tuple(caught.options.items()), bias, added,
                    settings_of(twin), ready)
        if _same(twin, plan):
            return plan
    return "quantizes, and computes what no linear layer or convolution does"


def _name_of(bias: torch.Tensor | None, parameters: dict[str, nn.Parameter]) -> str | None:
    if bias is None:
        return None
    return next(name for name, value in parameters.items() if value is bias)


def _same(twin: nn.Module, plan: Plan) -> bool:
    """Return whether the whole layer computes what the plan says: values, gradients, in both modes."""
    for training in (True, False):
        twin.train(training)
        with torch.no_grad():
            for name, value in twin.named_parameters():
                value.copy_(torch.rand(value.shape) * 0.3 + 0.05 if name != plan.weight else torch.randn(value.shape))
        x = sample(getattr(twin, plan.weight), twin, 5).requires_grad_()
        results = twin(x), _computed(twin, plan, x)
        if results[0].shape != results[1].shape or not torch.equal(*results):
            return False
        leaves, grad = [x, *twin.parameters()], torch.randn_like(results[0])
        theirs, ours = (torch.autograd.grad(result, leaves, grad, allow_unused=True) for result in results)
        scales = {part.name for part in (plan.weight_scaled, plan.input_scaled) if part is not None}
        names = ["", *(name for name, _ in twin.named_parameters())]
        for name, a, b in zip(names, theirs, ours, strict=True):
            if (a is None) != (b is None) or a is not None and not (near if name in scales else torch.equal)(a, b):
                return False
    return True


def _computed(module: nn.Module, plan: Plan, x: torch.Tensor) -> torch.Tensor:
    weight = getattr(module, plan.weight)
    if plan.weight_scaled is not None:
        weight = plan.weight_scaled(module, weight)
    if plan.input_scaled is not None:
        x = plan.input_scaled(module, x)
    bias = None if plan.bias is None else getattr(module, plan.bias)
    out = getattr(functional, plan.function)(x, weight, bias, **dict(plan.options))
    return out if plan.added is None else out + getattr(module, plan.added)


def _forward(module, *args, **kwargs):
    if kwargs or len(args) != 1 or not _supported(module, module.mbq_plan, args[0]):
        return original_forward(module, *args, **kwargs)
    try:
        return _computed(module, module.mbq_plan, args[0])
    except (RuntimeError, ValueError):  # a value that ours refuses: the layer computes with it, or raises its own error
        return original_forward(module, *args)


def _supported(module: nn.Module, plan: Plan, x: torch.Tensor) -> bool:
    """Return whether the layer is in the state in which it was compared, its tensors wide and large enough."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        return False
    weight = getattr(module, plan.weight)
    taken = [tensor for part, tensor in ((plan.weight_scaled, weight), (plan.input_scaled, x)) if part is not None]
    if weight.dtype != torch.float32 or not any(worthwhile(tensor, FEWEST) for tensor in taken):
        return False
    if plan.ready and module.training and (torch.compiler.is_compiling() or not is_ready(module)):
        return False
    return is_set(module, plan.settings)

