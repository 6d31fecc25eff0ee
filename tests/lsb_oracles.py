"""What the ops on least significant bits must compute: u by NumPy, integer codes, gradients by autograd, float64."""

import numpy as np
import oracles
import torch

SHAPES = [((1,), None), ((7,), None), ((2053,), None), ((3, 1031), 0), ((3, 50, 3), 1), ((5, 6, 2, 3), 1),
          ((4, 3, 17), -1), ((0,), None), ((4, 0), 0), ((), None)]
FORMS = ["offset", "sign-magnitude"]
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


def positions(x, limit, axis, form="offset"):
    """u in the arithmetic's dtype"""
    wide = oracles.wide(x)
    if limit is None:
        return wide
    with np.errstate(all="ignore"):
        part = wide / _limits(x, limit, axis)
        u = np.abs(part) if form == "sign-magnitude" else part / 2 + wide.dtype.type(0.5)
    return np.where(wide == 0, wide.dtype.type(form == "offset") / 2, u)


def _limits(x, limit, axis):
    return oracles.wide(oracles.spread(limit, x, axis)).astype(oracles.wide(x).dtype)


def codes(u, bits):
    """int64; the product is exact"""
    return np.minimum(np.rint(u.astype(np.float64) * 2**bits), 2**bits - 1).astype(np.int64)


def residuals(u, bits, k):
    return codes(u, bits) - 2**k * codes(u, bits - k)


def signed_codes(x, limit, axis, bits, form="offset"):
    """The integers that a store would hold; those of u itself are no more than codes"""
    code = codes(positions(x, limit, axis, form), bits)
    if limit is None:
        return code
    return code - 2 ** (bits - 1) if form == "offset" else np.where(oracles.wide(x) < 0, -code, code)


def values(x, limit, axis, bits, form="offset"):
    """Signed codes by their scale: limit / 2^(bits - 1), or limit / (2^bits - 1); 1 / 2^bits without limit"""
    limits = oracles.wide(x).dtype.type(1) if limit is None else _limits(x, limit, axis)
    steps = 2**bits - 1 if form == "sign-magnitude" else 2**bits if limit is None else 2 ** (bits - 1)
    value = signed_codes(x, limit, axis, bits, form).astype(limits.dtype) * (limits / limits.dtype.type(steps))
    return torch.from_numpy(np.asarray(value)).to(x.dtype)


def gradient(grad, grad_penalty, x, limit, axis, bits, k, unit_gradient=False, form="offset"):
    """Of sum(grad * value) + grad_penalty * sum|B|, by autograd through detach-style straight-through estimators."""
    u32 = positions(x, limit, axis, form)
    fine, coarse = (torch.from_numpy(np.asarray(c)).double() for c in (codes(u32, bits), codes(u32, bits - k)))
    leaf = x.detach().cpu().double().requires_grad_()
    if limit is None:
        u = leaf
    else:
        spread = oracles.spread(limit, x, axis).detach().cpu().double()
        spread = torch.where(spread > 0, spread, 1)  # of an all-zero channel B is 0
        u = leaf.abs() / spread if form == "sign-magnitude" else leaf / (2 * spread) + 0.5
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
