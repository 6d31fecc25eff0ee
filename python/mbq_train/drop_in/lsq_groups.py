"""The family of quantizers with a learned scale and a learned zero point: of a tensor, of channels or of groups.

A module is known by what it computes, as in lsq: it takes one tensor, its two Parameters have as many elements each.
"""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import nn

import mbq_kernels

from .family import Leave, Replace, Verdict
from .lsq import FEWEST, LIBRARY
from .lsq_copies import copy_of, is_own_leaf, is_set, near, probing, remembered, settings_of
from .replacement import original_forward
from .torch_ao.arithmetic import worthwhile

_BOUND = "the gradients of scales and zero points are sums in another order"
_QUOTIENTS = ("division", "reciprocal")
_ZERO_POINTS = ("integer", "after_rounding", "before_rounding")
_GRADIENTS = list(itertools.product(("code", "position", "none"), (True, False), (None, "tensor")))
_STEP, _ZERO, _MOST_CODES = 0.25, 1.0, 2**8
_found: dict[tuple, Verdict] = {}


@dataclass(frozen=True)
class Plan:
    """What the forward needs: names of the scale and of the zero point, elements in a group (None: what lies along a
    channel), the arithmetic in the words of fake_quantize_affine, the least and the greatest scale, which
    (clamp(s) - s).detach() + s keeps, and the attributes with which all this was found.
    """

    scale: str
    zero_point: str
    group_size: int | None
    lowest: int
    highest: int
    settings: tuple[tuple[str, object], ...]
    quotient: str = "division"
    zero_point_form: str = "integer"
    mask: str = "code"
    grad_product: bool = True
    factor: str | None = None
    limits: tuple[float, float] | None = None

    def fits(self, x: torch.Tensor, scale: torch.Tensor) -> bool:
        """Return whether x has elements for every scale."""
        if self.group_size is not None:
            return x.numel() == scale.numel() * self.group_size
        return scale.numel() == 1 or x.dim() == scale.dim() and x.shape[0] == scale.numel()

    def __call__(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return x quantized with the Parameters that `module` has."""
        scale, zero_point = getattr(module, self.scale), getattr(module, self.zero_point)
        if self.limits is not None:
            scale = (scale.clamp(*self.limits) - scale).detach() + scale
        rows = x.reshape(scale.numel(), -1)
        factor = 1.0 if self.factor is None else 1 / math.sqrt(x.numel() * max(self.highest, 1))
        return mbq_kernels.fake_quantize_affine(
            rows, scale.reshape(-1), zero_point.reshape(-1), quant_min=self.lowest, quant_max=self.highest, axis=0,
            grad_factor=factor, quotient=self.quotient, zero_point_form=self.zero_point_form, mask=self.mask,
            grad_product=self.grad_product).reshape(x.shape)


def lsq_groups(module: nn.Module) -> Verdict:
    """Return what is to become of `module`, where it is a quantizer with a learned scale and a learned zero point."""
    parameters = dict(module.named_parameters())
    if len(parameters) != 2 or not is_own_leaf(module):
        return None
    one, other = parameters.values()
    if one.shape != other.shape:
        return None
    return remembered(_found, module, lambda: _verdict(module, *parameters))


def _verdict(module: nn.Module, one: str, other: str) -> Verdict:
    reasons = []
    few = {id(value): nn.Parameter(value.detach()[:24].clone()) for value in module.parameters() if value.dim()}
    with probing(module):
        for names in ((one, other), (other, one)):
            for group_size in _group_sizes(module):
                try:
                    found = _fit(copy_of(module, few), *names, group_size)
                except Exception:  # whatever a stranger's forward raises for inputs that it was not made for
                    found = None
                if isinstance(found, Plan):
                    return Replace(LIBRARY, _forward, plan=found, bound=_BOUND)
                reasons.append(found)
    reason = next(filter(None, reasons), None)
    return reason and Leave(LIBRARY, reason)


def _group_sizes(module: nn.Module) -> list[int | None]:
    """Return numbers of elements that may be a group's: the module has them as attributes."""
    values = {value for _, value in settings_of(module) if type(value) is int and 2 <= value <= 2**14}
    return [None, *sorted(values)]


def _shapes(scale: torch.Tensor, group_size: int | None) -> list[tuple[int, ...]]:
    """Return shapes for x, of tensors of several sizes where those may differ."""
    count = scale.numel()
    if group_size is None:
        dims = max(scale.dim(), 2) - 1
        return [(count, *[size] * dims) if count > 1 else (size, 40) for size in (8, 24)]
    return [(count, group_size), (1, count * group_size)] + [(count // 2, 2 * group_size)] * (count % 2 == 0)


def _fit(twin: nn.Module, scale: str, zero_point: str, group_size: int | None) -> Plan | str | None:
    """Return the plan for `twin` with these roles; the reason where it quantizes otherwise; None where it does not."""
    steps, zeros = getattr(twin, scale), getattr(twin, zero_point)
    shapes = _shapes(steps, group_size)
    before = {name: value.clone() for name, value in twin.named_buffers()}
    limits = _limits(twin, steps, zeros, shapes[0])
    if limits is None or isinstance(limits, str):
        return limits
    plan = Plan(scale, zero_point, group_size, *limits, settings_of(twin), limits=_kept(twin, steps, zeros, shapes[0]))
    for quotient, form in itertools.product(_QUOTIENTS, _ZERO_POINTS):
        plan = replace(plan, quotient=quotient, zero_point_form=form)
        if not _same(twin, plan, shapes, False):
            continue
        for mask, product, factor in _GRADIENTS:
            full = replace(plan, mask=mask, grad_product=product, factor=factor)
            if _same(twin, full, shapes, True):
                steady = all(torch.equal(value, before[name]) for name, value in twin.named_buffers())
                return full if steady and settings_of(twin) == plan.settings else "changes its own state"
    return "rounds to steps of a scale, with values or gradients that no kernel has"


def _limits(twin, steps, zeros, shape) -> tuple[int, int] | str | None:
    """Return the least and the greatest code, from values far outside; None where there are none."""
    with torch.no_grad():
        steps.fill_(_STEP), zeros.fill_(_ZERO)
        results = [twin(torch.full(shape, value)) for value in (-1e6, 1e6, *torch.linspace(-1.9, 1.9, 96).tolist())]
    if any(y.shape != torch.Size(shape) or not bool((y == y.flatten()[0]).all()) for y in results):
        return None
    low, high, *ramp = (float(y.flatten()[0]) / _STEP + _ZERO for y in results)
    if len(set(ramp)) > 40 or not math.isfinite(low + high) or low == high:
        return None  # it does not round
    if not all(code.is_integer() for code in (low, high, *ramp)) or not low < high:
        return "rounds, but not to steps of one Parameter from the other's zero"
    return (int(low), int(high)) if high - low < _MOST_CODES else "has more than 8 bits"


def _kept(twin, steps, zeros, shape) -> tuple[float, float] | None:
    """Return the least and the greatest scale; None where every scale is taken as it is."""
    with torch.no_grad():
        zeros.fill_(0.0)
        least, greatest = (_taken(twin, steps, shape, value) for value in (1e-9, 1e9))
        if least <= 1e-8 and greatest >= 5e8:
            return None
        # Nearer by, (clamp(s) - s) + s loses no digit.
        return tuple(float(f"{_taken(twin, steps, shape, near):.3g}") for near in (least * 0.75, greatest * 1.5))


def _taken(twin, steps, shape, value: float) -> float:
    """Return the scale that is taken where the Parameter has this value: the smallest result but 0."""
    steps.fill_(value)
    sizes = [abs(float(twin(torch.full(shape, 1e9 * 0.5**k)).flatten()[0])) for k in range(64)]
    return min((size for size in sizes if size > 0), default=value)


def _probe(twin, plan: Plan, shape) -> torch.Tensor:
    """Return x whose elements lie at ties, at the edges and beyond, one ulp around, and anywhere."""
    scale, zero_point = (getattr(twin, name).detach().reshape(-1, 1) for name in (plan.scale, plan.zero_point))
    rows = scale.numel(), math.prod(shape) // scale.numel()
    codes = torch.randint(2 * plan.lowest - 3, 2 * plan.highest + 4, rows) / 2
    noise = torch.randn(rows) * 0.3 * (plan.highest - plan.lowest)
    x = torch.where(torch.rand(rows) < 0.5, codes - zero_point.round(), noise) * scale
    kind = torch.randint(0, 3, rows)
    x = torch.where(kind == 1, torch.nextafter(x, x + 1), x)
    return torch.where(kind == 2, torch.nextafter(x, x - 1), x).reshape(shape)


def _sizes(plan: Plan) -> tuple[float, ...]:
    """Return sizes of scales to try, beyond the least and the greatest too."""
    return (0.1, 1.7, 1e-6) + (() if plan.limits is None else (plan.limits[0] * 0.9, plan.limits[1] * 2.5, -0.2))


def _same(twin, plan: Plan, shapes, gradients: bool) -> bool:
    """Return whether values, and gradients where they are asked, are those of the plan in both modes."""
    steps, zeros = getattr(twin, plan.scale), getattr(twin, plan.zero_point)
    for training, shape, size in itertools.product((True, False), shapes, _sizes(plan)):
        twin.train(training)
        with torch.no_grad():
            steps.copy_((torch.rand(steps.shape) + 0.5) * size)
            zeros.copy_(torch.rand(zeros.shape) * (plan.highest - plan.lowest) * 1.4 + plan.lowest * 1.2 - 1)
        x = _probe(twin, plan, shape).requires_grad_()
        results = twin(x), plan(twin, x)
        if not torch.equal(*results):
            return False
        if gradients:
            grad = torch.randn(shape)
            theirs, ours = (torch.autograd.grad(result, (x, steps, zeros), grad) for result in results)
            if not torch.equal(theirs[0], ours[0]) or not all(map(near, theirs[1:], ours[1:])):
                return False
    return True


def _forward(module, *args, **kwargs):
    plan: Plan = module.mbq_plan
    x = args[0] if args else None
    scale = getattr(module, plan.scale)
    if kwargs or len(args) != 1 or not worthwhile(x, FEWEST) or x.dtype != torch.float32 or (
            scale.dtype != torch.float32 or not plan.fits(x, scale) or not is_set(module, plan.settings)):
        return original_forward(module, *args, **kwargs)
    try:
        return plan(module, x)
    except (RuntimeError, ValueError):  # a value that ours refuses: the module computes with it
        return original_forward(module, x)
