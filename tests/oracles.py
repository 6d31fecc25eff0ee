"""What the ops must compute, written independently of them: codes by NumPy's float32 division, the rest in float64."""

import math
from fractions import Fraction

import numpy as np
import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def bounds(bits, signed):
    if signed and bits == 1:
        return -1, 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def wide(tensor):
    """NumPy array in the dtype of the arithmetic."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().cpu().to(dtype).numpy()


def spread(parameter, x, axis):
    """A scale or offset in x's shape."""
    if parameter.numel() == 1:
        return parameter.reshape(()).expand(x.shape)
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape).expand(x.shape)


def positions(x, scale, offset, axis):
    """v = (x - offset) / scale in the arithmetic's dtype."""
    with np.errstate(all="ignore"):
        v = wide(x)
        if offset is not None:
            v = v - wide(spread(offset, x, axis))
        return v / wide(spread(scale, x, axis)).astype(v.dtype)


def codes(v, bits, signed):
    lo, hi = bounds(bits, signed)
    if signed and bits == 1:
        return np.where(np.isnan(v), v, np.where(v < 0, -1.0, 1.0)).astype(v.dtype)
    return np.clip(np.rint(v), lo, hi)


def fake_quantize(x, scale, offset=None, *, bits, signed=True, axis=None, out_dtype=None):
    v = positions(x, scale, offset, axis)
    value = codes(v, bits, signed) * wide(spread(scale, x, axis)).astype(v.dtype)
    if offset is not None:
        value = value + wide(spread(offset, x, axis)).astype(v.dtype)
    return torch.from_numpy(value).to(out_dtype or x.dtype)


def gradients(grad, x, scale, offset=None, *, bits, signed=True, axis=None, grad_factor=None):
    """(grad x, grad scale, grad offset or None) by autograd through a detach-style straight-through estimator, float64.

    Which elements are inside is decided where the op decides it, on v in the arithmetic's dtype.
    """
    lo, hi = bounds(bits, signed)
    v32 = torch.from_numpy(positions(x, scale, offset, axis))
    code = torch.from_numpy(codes(v32.numpy(), bits, signed)).double()
    count = x.numel() // scale.numel() if scale.numel() else 0
    factor = 1 / (max(count, 1) * hi) ** 0.5 if grad_factor is None else grad_factor
    leaf_x = x.detach().cpu().double().requires_grad_()
    leaves = [p.detach().cpu().double().requires_grad_() for p in (scale, offset) if p is not None]
    damped = [p * factor + (p - p * factor).detach() for p in leaves]
    s = spread(damped[0], leaf_x, axis)
    o = spread(damped[1], leaf_x, axis) if offset is not None else 0.0
    v = (leaf_x - o) / s
    v = torch.where((v32 >= lo) & (v32 <= hi), v, code.clamp(lo, hi))
    x_hat = s * (v + (code - v).detach()) + o
    grads = torch.autograd.grad(x_hat, [leaf_x, *leaves], grad.detach().cpu().double())
    return grads[0], grads[1], grads[2] if offset is not None else None


def sum_tolerance(grad, x, scale, offset, axis, factor):
    """A bound on the rounding of sum(grad * (code - v)): a few float32 ulps of every term's parts."""
    v = np.abs(positions(x, scale, offset, axis)).clip(0, 256) + 1
    parts = torch.from_numpy(v).double() * grad.detach().cpu().double().abs()
    other = [d for d in range(x.dim()) if scale.numel() == 1 or d != axis % x.dim()]
    return 4e-7 * (parts.sum(dim=other) if other else parts).reshape(scale.shape) * factor + 1e-30


def awkward_values(scale, lo, hi, dtype):
    """Ties, clamp edges and one ulp around both, zeros, subnormals, infinities, NaN - for a grid of step `scale`."""
    grid = torch.arange(lo - 2, hi + 3, dtype=torch.float64)
    exact = torch.cat([grid, grid + 0.5]) * scale
    near = exact.to(dtype)
    up = torch.nextafter(near, torch.full_like(near, torch.inf))
    down = torch.nextafter(near, torch.full_like(near, -torch.inf))
    tiny = torch.finfo(dtype).tiny
    special = torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 2, -tiny / 2, torch.inf, -torch.inf, torch.nan,
                            torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=torch.float64).to(dtype)
    return torch.cat([near, up, down, special])


def assert_same(actual, expected, what="x_hat"):
    """Equal bit for bit, except for the sign of zero and the payload of NaN; names the first difference."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, (actual.shape, actual.dtype)
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    wrong = ~((actual == expected) | (actual.isnan() & expected.isnan()))
    if wrong.any():
        index = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(f"{what}: {int(wrong.sum())} of {wrong.numel()} differ, first at {index}: "
                             f"{actual[index].item()!r}, expected {expected[index].item()!r}")


def assert_within(actual, expected, tolerance, what):
    error = (actual.detach().cpu().double() - expected).abs()
    assert (error <= tolerance).all(), f"{what}: worst error {(error - tolerance).max()} over the bound"


def switched(code, from_bits, to_bits, rounding):
    """One code at the lower bit-width, in Python's integers and fractions."""
    exact = Fraction(code, 2 ** (from_bits - to_bits))
    lo, hi = bounds(to_bits, True)
    return min(max(round(exact) if rounding == "half_even" else math.floor(exact + Fraction(1, 2)), lo), hi)


def switched_all(codes, from_bits, to_bits, rounding):
    """Every code of a tensor."""
    table = {code: switched(code, from_bits, to_bits, rounding) for code in range(-128, 128)}
    return torch.tensor([table[code] for code in codes.flatten().tolist()], dtype=torch.int8).reshape(codes.shape)


def random_codes(shape, bits, signed=True):
    """Codes of a bit-width, the lowest and the highest among the first."""
    lo, hi = bounds(bits, signed)
    codes = torch.randint(lo, hi + 1, shape, dtype=torch.int8 if signed else torch.uint8)
    codes = torch.where(codes == 0, hi, codes) if lo == -hi else codes
    codes.view(-1)[:2] = torch.tensor([lo, hi])[:codes.numel()]
    return codes


def packed_rows(codes, bits, signed):
    """pack_codes with a Python integer for a row: field i of a row is at bit i * bits."""
    rows = codes.reshape(-1, codes.shape[-1]).tolist() if codes.numel() else []
    size = math.ceil(codes.shape[-1] * bits / 8)
    packed = []
    for row in rows:
        fields = [(code + 1) // 2 if signed and bits == 1 else code % 2**bits for code in row]
        number = sum(field << (i * bits) for i, field in enumerate(fields))
        packed.append(list(number.to_bytes(size, "little")))
    return torch.tensor(packed, dtype=torch.uint8).reshape(*codes.shape[:-1], size)


def planes_of(codes, bits):
    """to_planes: plane p holds bit (bits - 1 - p) of the two's complement."""
    unsigned = codes.int() % 2**bits
    return torch.stack([packed_rows((unsigned >> (bits - 1 - p)) % 2, 1, False) for p in range(bits)])


def layouts(tensor):
    """The same values contiguous, with axes reversed in memory, as every second element, and off alignment."""
    yield "contiguous", tensor
    reverse = list(reversed(range(tensor.dim())))
    yield "reversed", tensor.permute(reverse).contiguous().permute(reverse)
    yield "sliced", torch.stack([tensor, tensor], -1).flatten(-2)[..., ::2]
    yield "shifted", torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)
