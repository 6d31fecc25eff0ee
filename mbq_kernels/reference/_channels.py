"""Arithmetic dtypes, channels and their sums, checks: what the reference of every elementwise op shares."""

import torch

from .quant_math import effective_scale


def widen(x):
    """x in the dtype of the arithmetic: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def per_channel(parameter, x, axis: int | None):
    """A scale or offset in a shape that broadcasts against x."""
    if axis is None:
        return parameter.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


def channel_sum(terms, parameter, axis: int | None, factor: float):
    """factor * the sum of `terms` over everything but the channel, in float64, shaped and typed as `parameter`."""
    other = [d for d in range(terms.dim()) if d != axis]
    total = terms.double().sum(dim=other) if other else terms.double()
    return (total * factor).reshape(parameter.shape).to(parameter.dtype)


def channel_size(x, axis: int | None) -> int:
    """How many elements of x share one scale."""
    return x.numel() if axis is None or x.numel() == 0 else x.numel() // x.shape[axis]


def check_scale(op: str, scale, where: str = "", floor=None) -> None:
    """Values are looked at on the CPU alone: elsewhere that would stop the host until the device answers."""
    if scale.device.type != "cpu":
        return
    if floor is None:
        _check_all(scale.isfinite() & (scale > 0), f"{op}: scale must be finite and > 0", scale, where)
    else:
        _check_all(scale.isfinite(), f"{op}: scale must be finite", scale, where)
        _check_all(floor.isfinite() & (floor > 0), f"{op}: scale_floor must be finite and > 0", floor, where)


def _check_all(good, message: str, parameter, where: str) -> None:
    if not good.all():
        index = int((~good).flatten().nonzero()[0])
        raise RuntimeError(f"{message}, got {parameter.flatten()[index]:g} (element {index}{where})")


def effective(op: str, scale, floor, where: str = ""):
    """The scale that is computed with, in scale's shape, once its values and the floor's are looked at."""
    check_scale(op, scale, where, floor)
    return scale if floor is None else effective_scale(scale, floor.reshape(scale.shape))
