"""What a layer gives to F.linear or F.conv*: caught, and found to be a kernel's result of its weight or input."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .lsq_copies import near
from .lsq_probes import Form, fit

_FUNCTIONS = {getattr(functional, name): name for name in ("linear", "conv1d", "conv2d", "conv3d")}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TINY, _NEGATIVE = 1e-7, -0.3  # scales that tell how one is kept positive


class _Stopped(Exception):
    """Carries a caught call out of a forward."""


class _Catch(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in _FUNCTIONS:
            raise _Stopped(_FUNCTIONS[function], dict(zip(_ARGUMENTS, args, strict=False)) | (kwargs or {}))
        return function(*args, **(kwargs or {}))


@dataclass
class Caught:
    """A call: the function's name, what it was given."""

    function: str
    input: torch.Tensor
    weight: torch.Tensor
    options: dict[str, object]


def call_of(layer: nn.Module, name: str, weight: torch.Tensor, x: torch.Tensor) -> Caught:
    """Return the first call that layer(x) makes with `weight` in the place of its Parameter `name`."""
    try:
        with _Catch():
            functional_call(layer, {name: weight}, (x,))
    except _Stopped as stopped:
        function, given = stopped.args
        return Caught(function, given.pop("input"), given.pop("weight"), given)
    raise LookupError("no call of F.linear or F.conv")


class _Floor(torch.autograd.Function):
    """The greater of a scale and a number, whose gradient is passed on in both cases."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scale, floor):
        return torch.where(scale > floor, scale, floor)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None


@dataclass(frozen=True)
class Scaled:
    """One tensor's quantization: the name of its scale, the form of the arithmetic, how the scale is kept positive.

    kept: 'free' as it is; 'absolute'; 'floor' the greater of it and the floor, with no gradient below; 'floor_through'
    with the gradient as it is.
    """

    name: str
    form: Form
    kept: str = "free"
    floor: float = 0.0

    def __call__(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return x quantized with the scale that `module` has."""
        return self.form(x, self.positive(getattr(module, self.name)))

    def positive(self, scale: torch.Tensor) -> torch.Tensor:
        """Return the scale as the arithmetic takes it."""
        if self.kept == "floor_through":
            return _Floor.apply(scale, self.floor)
        if self.kept == "floor":
            return torch.where(scale > self.floor, scale, self.floor)
        return scale.abs() if self.kept == "absolute" else scale


class _Part(nn.Module):
    """A layer's quantization of its weight or its input, as a module that fit can try."""

    def __init__(self, layer: nn.Module, weight: str, scale: str, x: torch.Tensor, which: str):
        super().__init__()
        self.layer, self.weight, self.x, self.which = layer, weight, x, which
        self.scale = getattr(layer, scale)

    def forward(self, x):
        """Return what becomes of x, which takes the place of the weight or of the input."""
        given = (x, self.x) if self.which == "weight" else (getattr(self.layer, self.weight), x)
        return getattr(call_of(self.layer, self.weight, *given), self.which)


def scaled(layer: nn.Module, weight: str, names: list[str], x: torch.Tensor, which: str) -> Scaled | str | None:
    """Return how `layer` quantizes `which`, with a scale of one of `names`; the reason where it does so in a way of its
    own; None where it does not."""
    reason, dim = None, getattr(layer, weight).dim()
    for name in names:
        scale = getattr(layer, name)
        if scale.numel() != 1 and (which == "input" or scale.dim() != dim or scale.shape[0] != scale.numel()):
            continue
        part = _Part(layer, weight, name, x, which)
        form = fit(part, "scale")
        found = _kept_positive(part, name, form) if isinstance(form, Form) else form
        if isinstance(found, Scaled):
            return found
        reason = reason or found
    return reason


def _kept_positive(part: _Part, name: str, form: Form) -> Scaled | str:
    """Return the form with what is done to scales that are tiny or negative."""
    far = torch.full((max(part.scale.numel(), 1), *[8] * (max(part.scale.dim(), 2) - 1)), 1e6)
    with torch.no_grad():
        part.scale.fill_(_TINY)
        floor = float(part(far).flatten()[0]) / form.highest
        if abs(floor - _TINY) > 1e-3 * _TINY:
            floor = float(part(far.clone().fill_(floor)).flatten()[0])  # its code is 1: rounded no more
            candidates = [Scaled(name, form, kept, floor) for kept in ("floor_through", "floor")]
        else:
            part.scale.fill_(_NEGATIVE)
            free = float(part(far).flatten()[0]) == float(part.scale.flatten()[0] * form.lowest)
            candidates = [Scaled(name, form, "free" if free else "absolute")]
    for found in candidates:
        if found.kept == "free" or all(_same(part, found, value) for value in (_TINY, _NEGATIVE, 0.3)):
            return found
    return "keeps its scale positive in a way that no kernel has"


def _same(part: _Part, found: Scaled, value: float) -> bool:
    """Return whether values and gradients are those of `found` with this scale."""
    with torch.no_grad():
        part.scale.fill_(value)
    shape = (part.scale.numel(), *[8] * (max(part.scale.dim(), 2) - 1))
    x = torch.randn(shape).mul(4 * max(found.floor, abs(value))).requires_grad_()
    results, grad = (part(x), found.form(x, found.positive(part.scale))), torch.randn(shape)
    theirs, ours = (torch.autograd.grad(result, (x, part.scale), grad) for result in results)
    return torch.equal(*results) and torch.equal(theirs[0], ours[0]) and near(theirs[1], ours[1])
