"""double_round: codes of the highest bit-width rounded again, over backends, dtypes and shapes."""

import numpy as np
import oracles
import pytest
import torch

import mbq_kernels as mbq

BITS = (8, 6, 4, 2)
SHAPES = [((1,), None), ((7,), None), ((2053,), None), ((4, 1031), 0), ((3, 50, 3), 1), ((2, 5, 6), -1), ((6, 4), 0)]
shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
roundings = pytest.mark.parametrize("rounding", ["half_even", "half_up"])
PAIRS = [(high, low) for high in range(2, 9) for low in range(2, high + 1)]


def make(shape, axis, dtype, device):
    """x that reaches past both ends of 8 bits."""
    scale = torch.rand(1 if axis is None else shape[axis]) * 0.05 + 0.03
    return (torch.randn(shape) * 4).to(device, dtype), scale.to(device)


def rounded_again(code: int, shift: int, rounding: str, bits: int) -> int:
    """In Python's integers: code / 2^shift, ties to even or up, clamped to signed `bits` bits."""
    quotient, rest = divmod(code, 2**shift)
    past_tie = 2 * rest - 2**shift
    up = past_tie > 0 or (past_tie == 0 and (rounding == "half_up" or quotient % 2 == 1))
    return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, quotient + up))


def oracle_codes(v, high_bits, bits, rounding):
    """Codes at `bits` for v = x / scale, float64 with NaN kept."""
    again = {c: rounded_again(c, high_bits - bits, rounding, bits) for c in range(-(2 ** (high_bits - 1)),
                                                                                 2 ** (high_bits - 1))}
    flat = (code if np.isnan(code) else again[int(code)] for code in oracles.codes(v, high_bits, True).ravel())
    return np.array(list(flat), dtype=np.float64).reshape(v.shape)


def oracle(x, scale, *, high_bits=8, bits, axis=None, rounding="half_even", out_dtype=None):
    codes = oracle_codes(oracles.positions(x, scale, None, axis), high_bits, bits, rounding)
    step = oracles.wide(oracles.spread(scale, x, axis)).astype(np.float64)
    exact = torch.from_numpy(codes * 2.0 ** (high_bits - bits) * step)  # at most 8 + 24 bits
    return exact.to(torch.float64 if x.dtype == torch.float64 else torch.float32).to(out_dtype or x.dtype)


def oracle_gradients(grad, x, scale, *, bits, axis, rounding="half_even", grad_factor=None, scale_chain=False):
    """(grad x, grad scale) by autograd through a detach-style straight-through estimator in float64."""
    (lo, hi), ratio = oracles.bounds(bits, True), 2.0 ** (8 - bits)
    v = oracles.positions(x, scale, None, axis)
    code, v = torch.from_numpy(oracle_codes(v, 8, bits, rounding)), torch.from_numpy(v / ratio)
    factor = 1 / (x.numel() / scale.numel() * hi) ** 0.5 if grad_factor is None else grad_factor
    factor *= ratio if scale_chain else 1
    leaf_x, leaf_scale = (t.detach().cpu().double().requires_grad_() for t in (x, scale))
    damped = leaf_scale * factor + (leaf_scale * ratio - leaf_scale * factor).detach()
    step = oracles.spread(damped, leaf_x, axis)
    position = torch.where((v >= lo) & (v <= hi), leaf_x / step, code.clamp(lo, hi))
    x_hat = step * (position + (code - position).detach())
    return torch.autograd.grad(x_hat, (leaf_x, leaf_scale), grad.detach().cpu().double())


@shapes
@dtypes
@roundings
def test_forward(device, shape, axis, dtype, rounding):
    x, scale = make(shape, axis, dtype, device)
    outs = mbq.double_round(x, scale, bits=BITS, axis=axis, rounding=rounding)
    assert isinstance(outs, tuple) and len(outs) == len(BITS)
    for out, b in zip(outs, BITS, strict=True):
        assert out.stride() == x.stride()
        oracles.assert_same(out, oracle(x, scale, bits=b, axis=axis, rounding=rounding))


@roundings
@pytest.mark.parametrize("high_bits, bits", PAIRS)
def test_every_code_and_tie(device, high_bits, bits, rounding):
    lo, hi = oracles.bounds(high_bits, True)
    x = oracles.awkward_values(0.3, lo, hi, torch.float32).to(device)
    scale = torch.tensor(0.3, device=device)
    actual = mbq.double_round(x, scale, high_bits=high_bits, bits=bits, rounding=rounding)
    oracles.assert_same(actual, oracle(x, scale, high_bits=high_bits, bits=bits, rounding=rounding))
    if high_bits == bits:
        oracles.assert_same(actual, mbq.fake_quantize(x, scale, bits=bits))


def test_hand_worked_table(device):
    """Codes 0 .. 7 of 4 bits at 2 bits: over 4, ties at 2 and 6, highest code 1."""
    x, one = torch.arange(-8.0, 8.0, device=device), torch.ones(1, device=device)
    even = mbq.double_round(x, one, high_bits=4, bits=2)
    assert (even / 4).tolist() == [-2, -2, -2, -1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    up = mbq.double_round(x, one, high_bits=4, bits=2, rounding="half_up")
    assert (up / 4).tolist() == [-2, -2, -1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_two_roundings_are_not_one(device):
    x, scale = torch.tensor([1.5 - 2**-6], device=device), torch.tensor([2.0**-4], device=device)
    assert mbq.double_round(x, scale, bits=4).item() == 2  # 23.75 -> 24, 24 / 16 = 1.5 -> 2
    assert mbq.fake_quantize(x, scale * 16, bits=4).item() == 1


@shapes
@dtypes
@pytest.mark.parametrize("bits", [BITS, (4,), (8, 7, 6, 5, 4, 3, 2, 2)], ids=str)
def test_gradients(device, shape, axis, dtype, bits):
    x, scale = make(shape, axis, dtype, device)
    grads = [torch.randn(shape).to(device, dtype) for _ in bits]
    leaves = [t.clone().requires_grad_() for t in (x, scale)]
    actual = torch.autograd.grad(mbq.double_round(*leaves, bits=bits, axis=axis), leaves, grads)
    total, to_scale, bound = torch.zeros(shape), torch.zeros(scale.shape, dtype=torch.float64), 0
    for b, grad in zip(bits, grads, strict=True):
        one = oracle_gradients(grad, x, scale, bits=b, axis=axis)
        total += one[0].float()  # in this order, in float32
        to_scale += one[1]
        factor = 1 / (x.numel() / scale.numel() * oracles.bounds(b, True)[1]) ** 0.5
        bound = bound + oracles.sum_tolerance(grad, x, scale, None, axis, factor)
    oracles.assert_same(actual[0], total.to(dtype), "grad x")
    oracles.assert_within(actual[1], to_scale, bound, "grad scale")


@pytest.mark.parametrize("options", [{"rounding": "half_up"}, {"scale_chain": True}, {"grad_factor": 0.25},
                                     {"scale_chain": True, "grad_factor": 1.0}], ids=str)
def test_options_of_the_gradient(device, options):
    x, scale = make((4, 1031), 0, torch.float32, device)
    grad = torch.randn(x.shape, device=device)
    leaves = [t.clone().requires_grad_() for t in (x, scale)]
    actual = torch.autograd.grad(mbq.double_round(*leaves, bits=3, axis=0, **options), leaves, grad)
    expected = oracle_gradients(grad, x, scale, bits=3, axis=0, **options)
    oracles.assert_same(actual[0], expected[0].float(), "grad x")
    bound = oracles.sum_tolerance(grad, x, scale, None, 0, options.get("grad_factor", 1 / (1031 * 3) ** 0.5))
    oracles.assert_within(actual[1], expected[1], bound * (32 if "scale_chain" in options else 1), "grad scale")


@shapes
def test_one_bit_width_is_its_entry_of_several(device, shape, axis):
    x, scale = make(shape, axis, torch.float32, device)
    grad, zero = torch.randn(shape, device=device), torch.zeros(shape, device=device)
    for k, b in enumerate(BITS):
        leaves = [t.clone().requires_grad_() for t in (x, scale)]
        single, several = mbq.double_round(*leaves, bits=b, axis=axis), mbq.double_round(*leaves, bits=BITS, axis=axis)
        oracles.assert_same(single, several[k])
        one = torch.autograd.grad(single, leaves, grad)
        many = torch.autograd.grad(several, leaves, [grad if j == k else zero for j in range(len(BITS))])
        for a, b_, what in zip(one, many, ("grad x", "grad scale"), strict=True):
            oracles.assert_same(a, b_, what)


def test_without_second_rounding_it_is_fake_quantize(device):
    x, scale = make((4, 1031), 0, torch.float32, device)
    results = []
    for bits in (8, 3):
        for f, options in ((mbq.double_round, {"high_bits": bits}), (mbq.fake_quantize, {})):
            leaves = [t.clone().requires_grad_() for t in (x, scale)]
            out = f(*leaves, bits=bits, axis=0, **options)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for one, other in (results[:2], results[2:]):
        for a, b, what in zip(one, other, ("x_hat", "grad x", "grad scale"), strict=True):
            oracles.assert_same(a, b, what)


def test_gradient_of_nan_goes_to_scale_alone(device):
    x = torch.tensor([[torch.nan, 0.1], [0.2, torch.inf]], device=device, requires_grad=True)
    scale = torch.full((2,), 0.01, device=device, requires_grad=True)
    out = mbq.double_round(x, scale, bits=4, axis=0, grad_factor=1.0)
    assert out[0, 0].isnan() and not out.flatten()[1:].isnan().any()
    out.backward(torch.ones(2, 2, device=device))
    assert x.grad.tolist() == [[0, 1], [1, 0]]
    assert scale.grad[0].isnan()
    torch.testing.assert_close(scale.grad[1].item(), (1 - 0.2 / 0.16) + 7, rtol=1e-5, atol=0)  # 20 -> 1.25 -> 1; 7


def test_saturated_gradients_never_multiply(device):
    x = torch.tensor([100.0], device=device, requires_grad=True)
    out = mbq.double_round(x, torch.ones(1, device=device), high_bits=6, bits=4)
    out.backward(torch.tensor([torch.inf], device=device))
    assert x.grad.item() == 0
