"""Arithmetic dtypes, channels and their sums, checks: what the reference of every elementwise op shares."""

import math

import torch

from .quant_math import effective_scale


def widen(x):
    """Return x in the dtype of the arithmetic: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def per_channel(parameter, x, axis: int | None):
    """Return a scale or offset in a shape that broadcasts against x."""
    if axis is None:
        return parameter.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


def channel_sum(terms, parameter, axis: int | None, factor: float, unit=None):
    """Return factor * the sum of `terms` over everything but the channel, over the parameter's unit where it has one,
    in float64; shaped and typed as `parameter`."""
    other = [d for d in range(terms.dim()) if d != axis]
    total = terms.double().sum(dim=other) if other else terms.double()
    total = (total * factor).reshape(parameter.shape)
    return per_unit(total, unit).to(parameter.dtype)


def per_unit(gradient, unit):
    """Return gradients in float64 of scales that are computed with, as those of scales in units, where there are units.
    """
    return gradient if unit is None else gradient / unit.reshape(gradient.shape).double()


def channel_size(x, axis: int | None) -> int:
    """Return how many elements of x share one scale."""
    return x.numel() if axis is None or x.numel() == 0 else x.numel() // x.shape[axis]


def effective(scale, unit, floor):
    """Return the scale that is computed with, in scale's shape; there may be no unit and no floor."""
    if unit is None and floor is None:
        return scale
    return effective_scale(scale, 1.0 if unit is None else unit.reshape(scale.shape),
                           -math.inf if floor is None else floor.reshape(scale.shape))


def check_scale(op: str, scale, unit=None, floor=None, where: str = ""):
    """Return effective(scale, unit, floor), once the values are looked at: on the CPU alone, because elsewhere that
    would stop the host until the device answers."""
    size = effective(scale, unit, floor)
    if scale.device.type != "cpu":
        return size
    _check_all(op, "scale", scale, where, floor is None)
    if unit is not None:
        _check_all(op, "scale_unit", unit, where)
    if floor is not None:
        _check_all(op, "scale_floor", floor, where)
    _check_all(op, "scale * scale_unit", size, where)
    return size


def _check_all(op: str, name: str, parameter, where: str, positive: bool = True) -> None:
    good = parameter.isfinite() & (parameter > 0) if positive else parameter.isfinite()
    if not good.all():
        index = int((~good).flatten().nonzero()[0])
        raise RuntimeError(f"{op}: {name} must be finite{' and > 0' if positive else ''}, "
                           f"got {parameter.flatten()[index]:g} (element {index}{where})")
