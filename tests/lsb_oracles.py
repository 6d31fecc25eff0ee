"""What the ops on least significant bits must compute: u by NumPy, codes as integers, gradients by autograd, float64."""

import numpy as np
import oracles
import torch

SHAPES = [((1,), None), ((7,), None), ((2053,), None), ((3, 1031), 0), ((3, 50, 3), 1), ((5, 6, 2, 3), 1),
          ((4, 3, 17), -1), ((0,), None), ((4, 0), 0), ((), None)]
BITS = [(8, 1), (8, 3), (5, 2), (4, 3), (3, 1), (2, 1)]  # and k


def make(shape, axis, dtype=torch.float32):
    """(weight, its limit) with an all-zero channel, or none where there is one channel"""
    x = torch.randn(shape).to(dtype)
    if axis is not None and x.numel():
        x.select(axis, 0).zero_()
    other = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    limit = torch.zeros(1 if axis is None else shape[axis])
    if x.numel():
        limit = x.float().abs().amax(dim=other) if other else x.float().abs()
    return x, limit


def positions(x, limit, axis):
    """u in the arithmetic's dtype"""
    if limit is None:
        return oracles.wide(x)
    wide = oracles.wide(x)
    divisor = oracles.wide(oracles.spread(limit, x, axis)).astype(wide.dtype)
    with np.errstate(all="ignore"):
        u = wide / divisor / 2 + wide.dtype.type(0.5)
    return np.where(wide == 0, wide.dtype.type(0.5), u)


def codes(u, bits):
    """int64; the product is exact"""
    return np.minimum(np.rint(u.astype(np.float64) * 2**bits), 2**bits - 1).astype(np.int64)


def residuals(u, bits, k):
    return codes(u, bits) - 2**k * codes(u, bits - k)


def values(x, limit, axis, bits):
    u, top = positions(x, limit, axis), 2**bits - 1
    code = codes(u, bits)
    if limit is None:
        value = code.astype(u.dtype) / u.dtype.type(top)
    else:
        value = (2 * code - 2**bits).astype(u.dtype) / u.dtype.type(top)
        with np.errstate(over="ignore"):  # at 1 bit the lowest value is -2 limit
            value = value * oracles.wide(oracles.spread(limit, x, axis)).astype(u.dtype)
    return torch.from_numpy(np.asarray(value)).to(x.dtype)


def gradient(grad, grad_penalty, x, limit, axis, bits, k, unit_gradient=False):
    """Of sum(grad * value) + grad_penalty * sum|B|, by autograd through detach-style straight-through estimators."""
    u32 = positions(x, limit, axis)
    fine, coarse = (torch.from_numpy(np.asarray(c)).double() for c in (codes(u32, bits), codes(u32, bits - k)))
    leaf = x.detach().cpu().double().requires_grad_()
    if limit is None:
        u = leaf
    else:
        spread = oracles.spread(limit, x, axis).detach().cpu().double()
        u = leaf / torch.where(spread > 0, 2 * spread, 1) + 0.5  # of an all-zero channel B is 0
    steps = 1 if unit_gradient else 2**bits
    straight = steps * u + (fine - steps * u).detach()
    penalty = (straight - 2**k * coarse).abs().sum()
    value = leaf + (fine - leaf).detach()
    loss = (value * grad.detach().cpu().double()).sum() + grad_penalty * penalty
    return torch.autograd.grad(loss, leaf)[0]


def gradient_tolerance(grad, grad_penalty, x, limit, axis, bits, dtype):
    """A few roundings of each part, and one to `dtype`."""
    spread = 1.0 if limit is None else oracles.spread(limit, x, axis).detach().cpu().double()
    part = abs(grad_penalty) * 2.0**bits / torch.as_tensor(spread).clamp(min=1e-30)
    size = grad.detach().cpu().double().abs() + part
    return size * (torch.finfo(dtype).eps + 4e-7)
