"""Arithmetic dtypes, channels and their sums, checks: what the reference of every elementwise op shares."""

import torch


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


def check_scale(op: str, scale, where: str = "") -> None:
    """Scales are looked at on the CPU alone: elsewhere that would stop the host until the device answers."""
    if scale.device.type != "cpu":
        return
    bad = ~((scale > 0) & scale.isfinite())
    if bad.any():
        index = int(bad.flatten().nonzero()[0])
        raise RuntimeError(f"{op}: scale must be finite and > 0, got {scale.flatten()[index]:g} "
                           f"(element {index}{where})")
