"""What the references of round_clamp and of the ops on its least significant bits share."""

import torch

from . import quant_math as qm
from ._channels import per_channel, widen


def form(limit, sign_magnitude) -> tuple[float, float, float, float]:
    """That of quant_math: x is a weight in [-limit, limit], or u itself"""
    return qm.unit_form(limit is not None, sign_magnitude)


def slope_factor(limit, bits, sign_magnitude, unit_gradient) -> float:
    """Return what lsb_slope multiplies by: du/d|x| is half / limit"""
    return form(limit, sign_magnitude)[0] * (1.0 if unit_gradient else 2.0**bits)


def limit_of(x, limit, axis):
    """Return limit so that it broadcasts against x; 1 where there is none"""
    return widen(x).new_ones(()) if limit is None else per_channel(limit, x, axis)


def position(op: str, x, limit, axis, sign_magnitude, where: str = ""):
    """Return u in [0, 1], x and limit looked at on the CPU alone: elsewhere that would stop the host"""
    u = qm.unit_position(widen(x), limit_of(x, limit, axis), form(limit, sign_magnitude))
    if x.device.type == "cpu":
        _check_limit(op, limit, where)
        bad = ~((u >= 0) & (u <= 1))
        if bad.any():
            index = int(bad.flatten().nonzero()[0])
            raise RuntimeError(f"{op}: x must lie within {'[0, 1]' if limit is None else '[-limit, limit]'}, "
                               f"got {x.flatten()[index]:g} (element {index}{where})")
    return qm.within_unit(u)


def _check_limit(op, limit, where):
    bad = None if limit is None else ~((limit >= 0) & limit.isfinite())
    if bad is not None and bad.any():
        index = int(bad.flatten().nonzero()[0])
        raise RuntimeError(f"{op}: limit must be finite and >= 0, got {limit.flatten()[index]:g} "
                           f"(element {index}{where})")


def value(x, u, limit, bits, axis, sign_magnitude):
    """Return what the code of u stands for, in x's memory order and dtype"""
    steps, form_ = 2.0**bits, form(limit, sign_magnitude)
    code = qm.round_clamp_signed(qm.round_clamp_code(u, steps), x, steps, form_)
    return torch.empty_like(x).copy_(code * qm.round_clamp_scale(limit_of(x, limit, axis), steps, form_))


def residual(u, bits, k):
    return qm.lsb_residual(u, 2.0**bits, 2.0 ** (bits - k), 2.0**k)


def counts(x, u, bits, k):
    """Return (sum of |B|, share of B that is not 0) in the dtype of the arithmetic; both come from exact integers"""
    lsbs = residual(u, bits, k)
    penalty, nonzero = lsbs.abs().long().sum(), (lsbs != 0).sum()
    dtype = widen(x).dtype
    return penalty.to(dtype), (nonzero.double() / max(x.numel(), 1)).to(dtype)


def gradient(grad, grad_penalty, x, limit, bits, k, axis, sign_magnitude, unit_gradient):
    """Return grad + grad_penalty * 2^bits (or 1) * sign(B) * du/dx, in x's memory order and dtype"""
    limit_, form_ = limit_of(x, limit, axis), form(limit, sign_magnitude)
    u = qm.within_unit(qm.unit_position(widen(x), limit_, form_))
    slope = qm.lsb_slope(grad_penalty, limit_, slope_factor(limit, bits, sign_magnitude, unit_gradient))
    return torch.empty_like(x).copy_(qm.lsb_gradient(grad, x, residual(u, bits, k), slope, form_))
