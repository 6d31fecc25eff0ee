"""Scales and shifts as people keep them: plain numbers, one for every group of the last axis, a factor of a tensor."""

import math

import torch

from . import _checks as check
from ._per_channel import is_number
from .reference.quant_math import default_grad_factor


def factor_of(op: str, grad_factor, x, hi):
    """Return grad_factor, once it is checked; of "tensor" the number: LSQ's factor of all elements of x, also with an
    axis."""
    if grad_factor == "tensor":
        return default_grad_factor(x.numel(), hi)
    check.check_factor(op, grad_factor)
    return grad_factor


def factors_of(op: str, grad_factor, channels: int):
    """Return (grad_factor, what gradients are multiplied by after it) for several bit-widths, which have an LSQ factor
    each; None: by nothing."""
    if grad_factor == "tensor":
        return None, 1 / math.sqrt(max(channels, 1))  # of all elements, not of a channel's
    check.check_factor(op, grad_factor)
    return grad_factor, None


def outside(grad_factor, *parameters) -> tuple:
    """Return (what the operator multiplies gradients by, the parameters, whose gradients are multiplied by the rest).

    The rest is 1, but where torch.compile has symbols for sizes and the factor comes from them. The operator takes a
    number, and so would make one of it, and a graph for every size of x. The product is rounded once more there.
    """
    if grad_factor is None or not torch.compiler.is_compiling() or _is_static(grad_factor):
        return grad_factor, *parameters
    return 1.0, *(_multiplied(parameter, grad_factor) for parameter in parameters)


def _is_static(factor) -> bool:
    from torch.fx.experimental.symbolic_shapes import has_static_value  # which imports sympy
    return has_static_value(factor)


def _multiplied(parameter: torch.Tensor | None, factor):
    """Return the parameter exactly, with its gradient multiplied by factor."""
    if parameter is None or not parameter.is_floating_point():
        return parameter
    product = parameter * factor
    return parameter.detach() + (product - product.detach())


def matched(op: str, names: tuple[str, str], given, scale, shift):
    """Return a scale and a shift that are checked, one that was `given` as a number in the shape of the other."""
    if scale.numel() != shift.numel():
        if is_number(given[0]):
            return scale.expand(shift.shape), shift
        if is_number(given[1]):
            return scale, shift.expand(scale.shape)
        check.check_pair(op, names, scale, shift)
    return scale, shift


def grouped(op: str, x, group_size, axis, several: bool = False, **parameters):
    """Return (x as (groups, size), its parameters as (groups,) or one element, in a list), which go with axis 0.

    A group is group_size elements that lie side by side in the last axis. None, numbers and single elements stay.
    several: parameters have an entry per bit-width.
    """
    if axis is not None:
        raise ValueError(f"{op}: axis must be None with group_size, whose groups are of the last axis, got {axis!r}")
    if isinstance(group_size, bool) or not isinstance(group_size, (int, torch.SymInt)):
        raise TypeError(f"{op}: group_size must be an integer or None, got {group_size!r}")
    if x.dim() == 0 or group_size < 1 or x.shape[-1] % group_size:
        raise ValueError(f"{op}: group_size must divide the last axis of x, which has shape {tuple(x.shape)}, "
                         f"got {group_size}")
    shape = (*x.shape[:-1], x.shape[-1] // group_size)
    of_groups = [_of_groups(op, name, given, shape, several) for name, given in parameters.items()]
    return x.reshape(math.prod(shape), group_size), of_groups


def _of_groups(op: str, name: str, given, shape: tuple[int, ...], several: bool):
    if several and hasattr(given, "__iter__") and not (isinstance(given, torch.Tensor) and given.dim() == 0):
        return [_of_groups(op, f"{name}[{k}]", entry, shape, False) for k, entry in enumerate(given)]
    if not isinstance(given, torch.Tensor) or given.numel() == 1:
        return given
    rows = (math.prod(shape[:-1]), shape[-1])
    if tuple(given.shape) not in (shape, rows):
        raise ValueError(f"{op}: {name} must have an element per group, shape {shape}"
                         f"{'' if shape == rows else f' or {rows}'}, got shape {tuple(given.shape)}")
    return given.reshape(-1)
