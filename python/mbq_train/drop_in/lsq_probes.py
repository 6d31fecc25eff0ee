"""Find the form of a quantizer with a learned scale: its range, where it clips, its gradients."""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import nn

import mbq_kernels

_STEPS = (0.1, 0.37, 1.7)  # scales that are tried
_MOST_CODES = 2**8
_FACTORS = {  # of the gradient of the scale, for n elements of x, C channels, the highest code hi
    "tensor": lambda n, channels, hi: 1 / math.sqrt(n * hi), "channel": lambda n, channels, hi: math.sqrt(
        channels / (n * hi)), "one": lambda n, channels, hi: 1.0}
_GRADIENTS = list(itertools.product(("position", "code", "none"), (True, False)))  # mask, grad_product
# (factor, detached), in groups that have the same values.
_SCALES = [[("tensor", False), ("channel", False), ("one", False)], [("tensor", True)], [("channel", True)]]


@dataclass(frozen=True)
class Form:
    """The arithmetic of one quantizer, in the words of fake_quantize_affine.

    factor: what the gradient of the scale is multiplied by; detached: by (s - s f).detach() + s f in the place of s,
    which may differ from s in its last bit. axis, dims: of a scale of one dimension, which axis of x its elements go
    with, and numbers of dimensions of x with which it does so; others have as many dimensions as x.
    """

    lowest: int
    highest: int
    quotient: str = "division"
    mask: str = "position"
    grad_product: bool = True
    factor: str = "one"
    detached: bool = False
    axis: int | None = None
    dims: tuple[int, ...] = ()

    def fits(self, x: torch.Tensor) -> bool:
        """Return whether x has a number of dimensions with which the form was found."""
        return not self.dims or x.dim() in self.dims

    def axis_of(self, scale: torch.Tensor) -> int | None:
        """Return the axis that has a scale for each index."""
        if self.axis is not None:
            return self.axis
        wide = [axis for axis, size in enumerate(scale.shape) if size != 1]
        return wide[0] if wide else None

    def __call__(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return x quantized with a scale of one element, or of one for each channel in x's number of dimensions."""
        factor = _FACTORS[self.factor](x.numel(), scale.numel(), max(self.highest, 1))
        if self.detached:
            part = scale * factor
            scale, factor = (scale - part).detach() + part, 1.0
        return mbq_kernels.fake_quantize_affine(
            x, scale, torch.zeros_like(scale), quant_min=self.lowest, quant_max=self.highest, axis=self.axis_of(scale),
            grad_factor=factor, quotient=self.quotient, mask=self.mask, grad_product=self.grad_product)


def states_of(module: nn.Module, names: set[str] | None = None) -> dict[str, object]:
    """Return buffers of one element and plain attributes of `module` as numbers, texts and truth values."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
    states = plain | {name: buffer.item() for name, buffer in module.named_buffers() if buffer.numel() == 1}
    return {name: value for name, value in states.items() if names is None or name in names}


def fit(module: nn.Module, name: str) -> Form | str | None:
    """Return the form of `module`, whose scale is called `name`; the reason where it is a quantizer of another kind;
    None where it is no quantizer."""
    scale = getattr(module, name)
    if sum(size != 1 for size in scale.shape) > 1:
        return None
    if scale.dim() != 1 or scale.numel() == 1:
        return _fit(module, scale, tuple(scale.shape), None)
    found = {view: _tried(module, scale, view) for view in views(scale)}
    forms = {form: [len(view) for view in found if found[view] == form] for form in found.values()
             if isinstance(form, Form)}
    if not forms:
        return next(filter(None, found.values()), None)
    form = max(forms, key=lambda form: len(forms[form]))
    return replace(form, dims=tuple(forms[form]))


def views(scale: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the shapes that a scale may have among the dimensions of x: of one dimension it may be that of any."""
    if scale.dim() != 1 or scale.numel() == 1:
        return [tuple(scale.shape)]
    return [(len(scale), *[1] * more) for more in (1, 2, 3)] + [(*[1] * more, len(scale)) for more in (1, 2)]


def _tried(module: nn.Module, scale: nn.Parameter, view: tuple[int, ...]) -> Form | str | None:
    try:
        return _fit(module, scale, view, 0 if view[0] > 1 else -1)
    except (RuntimeError, IndexError):  # made for tensors of other dimensions
        return None


def _fit(module: nn.Module, scale: nn.Parameter, view: tuple[int, ...], axis: int | None) -> Form | str | None:
    limits = _limits(module, scale, view)
    if limits is None or isinstance(limits, str):
        return limits
    for factors, quotient in itertools.product(_SCALES, ("division", "reciprocal")):
        values = Form(*limits, quotient, *_GRADIENTS[0], *factors[0], axis)
        if _same_values(module, scale, view, values):
            for gradients, factor in itertools.product(_GRADIENTS, factors):
                form = Form(*limits, quotient, *gradients, *factor, axis)
                if _same(module, scale, view, form):
                    return form
    return "rounds to steps of its scale, with values or gradients that no kernel has"


def _limits(module: nn.Module, scale: torch.Tensor, view: tuple[int, ...]) -> tuple[int, int] | str | None:
    """Return the least and the greatest code, from values far outside; None where there are none."""
    _set(module, scale, 0.25)
    far = torch.full(shape_of(view, 4), 1e6)
    with torch.no_grad():
        results = [module(far.clone().fill_(value)) for value in (1e6, -1e6, *torch.linspace(-1.9, 1.9, 96).tolist())]
    if not all(isinstance(y, torch.Tensor) and y.shape == far.shape for y in results):
        return None
    if not all(bool((y == y.flatten()[0]).all()) for y in results):
        return None
    high, low, *ramp = (float(y.flatten()[0]) / 0.25 for y in results)
    if len(set(ramp)) > 40 or not math.isfinite(high + low):
        return None  # it does not round
    if not all(code.is_integer() for code in (high, low, *ramp)) or not low <= 0 < high:
        return "rounds, but not to steps of its Parameter"
    if high - low >= _MOST_CODES:
        return "has more than 8 bits"
    return int(low), int(high)


def shape_of(view: tuple[int, ...], each: int) -> tuple[int, ...]:
    """Return a shape for x of about `each` elements a scale, whose shape among the dimensions of x is `view`."""
    if math.prod(view) == 1:
        return each, 6
    last = max(axis for axis, size in enumerate(view) if size == 1)
    return tuple(size if size != 1 else max(each // 8, 4) if axis == last else 2 for axis, size in enumerate(view))


def _set(module: nn.Module, scale: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        scale.copy_(torch.linspace(1.0, 1.5, scale.numel()).reshape(scale.shape).mul(value) if scale.numel() > 1 and
                    value != 0.25 else torch.full_like(scale, value))


def _probe(scale: torch.Tensor, view: tuple[int, ...], form: Form, each: int) -> torch.Tensor:
    """Return x whose elements lie at ties, at both edges and half a step beyond, one ulp around, and anywhere."""
    shape = shape_of(view, each)
    codes = torch.arange(2 * form.lowest - 2, 2 * form.highest + 3) / 2
    codes = codes[torch.randint(0, len(codes), (math.prod(shape),))].reshape(shape)
    noise = torch.randn(shape).mul(0.3 * (form.highest - form.lowest))
    x = torch.where(torch.rand(shape) < 0.5, codes, noise) * scale.detach().reshape(view)
    kind = torch.randint(0, 3, shape)
    x = torch.where(kind == 1, torch.nextafter(x, torch.full_like(x, 1e9)), x)
    return torch.where(kind == 2, torch.nextafter(x, torch.full_like(x, -1e9)), x)


def _same_values(module: nn.Module, scale: nn.Parameter, view: tuple[int, ...], form: Form) -> bool:
    """Return whether values are those of `form`."""
    module.train()
    with torch.no_grad():
        for number in range(max(48 // scale.numel(), 6)):
            each = 24 + 8 * number
            scale.copy_(_telling(scale.shape, math.prod(shape_of(view, each)), max(form.highest, 1)))
            x = _probe(scale, view, form, each)
            if not torch.equal(module(x), form(x, scale)):
                return False
    return True


def _telling(shape: torch.Size, count: int, highest: int) -> torch.Tensor:
    """Return scales whose last bit tells a detached scale from a plain one, which few do."""
    drawn = torch.rand(4096) * 2 + 0.01
    parts = [drawn * _FACTORS[factor](count, shape.numel(), highest) for factor in ("tensor", "channel")]
    telling = drawn[((drawn - parts[0]) + parts[0] != drawn) | ((drawn - parts[1]) + parts[1] != drawn)]
    pool = telling if len(telling) else drawn
    return pool[torch.randint(0, len(pool), shape)]


def _same(module: nn.Module, scale: nn.Parameter, view: tuple[int, ...], form: Form) -> bool:
    """Return whether values and gradients of x are those of `form`, in both modes, and that of the scale is near it."""
    for training, (number, value) in itertools.product((True, False), enumerate(_STEPS)):
        module.train(training)
        _set(module, scale, value)
        x = _probe(scale, view, form, 200 + 57 * number).requires_grad_()
        results, grad = (module(x), form(x, scale)), torch.randn_like(x)
        gradients = [torch.autograd.grad(result, (x, scale), grad) for result in results]
        if not torch.equal(*results) or not torch.equal(gradients[0][0], gradients[1][0]):
            return False
        near = 1e-4 * float(gradients[1][1].abs().max())
        if not torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-3, atol=near):
            return False
    return True
