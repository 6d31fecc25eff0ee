"""lsb_penalty: exact integers forward, the oracle's gradient backward."""

import lsb_oracles
import numpy as np
import oracles
import pytest
import torch
from running import threads
from test_extract_lsb import BAD_K
from test_round_clamp import BAD_X, forms, near_edges, weights_near_edges

import mbq_kernels as mbq

shapes = pytest.mark.parametrize("shape, axis", lsb_oracles.SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def expected(x, limit, axis, bits, k, form="offset"):
    """(penalty, rate) of exact integers, rounded to float32 once"""
    residual = lsb_oracles.residuals(lsb_oracles.positions(x, limit, axis, form), bits, k)
    return np.float32(np.abs(residual).sum()), np.float32(np.count_nonzero(residual) / max(residual.size, 1))


def check(device, x, limit, axis, bits, k, **options):
    leaf = x.to(device).requires_grad_()
    limit_ = None if limit is None else limit.to(device)
    penalty, rate = mbq.lsb_penalty(leaf, bits=bits, k=k, limit=limit_, axis=axis, **options)
    assert (penalty.shape, penalty.dtype, rate.shape, rate.dtype) == ((), torch.float32, (), torch.float32)
    assert (penalty.item(), rate.item()) == expected(x, limit, axis, bits, k, options.get("form", "offset"))
    assert not rate.requires_grad
    (grad,) = torch.autograd.grad(penalty, leaf, torch.tensor(0.75, device=device))
    zero = torch.zeros(x.shape)
    wanted = lsb_oracles.gradient(zero, 0.75, x, limit, axis, bits, k, **options)
    assert grad.dtype == x.dtype and grad.stride() == torch.empty_like(leaf).stride()
    bound = lsb_oracles.gradient_tolerance(zero, 0.75, x, limit, axis, bits, x.dtype)
    oracles.assert_within(grad, wanted, bound, "grad x")
    assert torch.equal(grad.cpu() == 0, wanted == 0)


@shapes
@dtypes
@pytest.mark.parametrize("bits, k", [(8, 1), (5, 2), (4, 3)])
@forms
def test_penalty_rate_and_gradient(device, shape, axis, dtype, bits, k, form):
    x, limit = lsb_oracles.make(shape, axis, dtype)
    for _, given in oracles.layouts(x) if x.dim() and x.numel() else [("as it is", x)]:
        check(device, given, limit, axis, bits, k, form=form)
    check(device, torch.rand(shape).to(dtype), None, None, bits, k, form=form)


@pytest.mark.parametrize("unit_gradient", [False, True])
@pytest.mark.parametrize("bits, k", [(b, k) for b in range(2, 9) for k in (1, 2, 3) if k < b])
@forms
def test_ties_and_ends(device, bits, k, unit_gradient, form):
    options = {"unit_gradient": unit_gradient, "form": form}
    check(device, near_edges(bits, torch.float32), None, None, bits, k, **options)
    limit = torch.tensor([1.7])
    check(device, weights_near_edges(bits, torch.float32, limit, form), limit, None, bits, k, **options)


def test_hand_worked_gradient(device):
    """3 bits of u = 0, 1/8, 3/8, 1/2, .9, 1 in [-2, 2]: codes 0 1 3 4 7 7, at 2 bits 0 0 2 2 3 3: B = 0 1 -1 0 1 1."""
    u = torch.tensor([0.0, 0.125, 0.375, 0.5, 0.9, 1.0], device=device)
    x = (4 * u - 2).requires_grad_()
    penalty, rate = mbq.lsb_penalty(x, bits=3, limit=torch.tensor(2.0, device=device))
    penalty.backward()
    assert penalty.item() == 4 and rate.item() == torch.tensor(4 / 6).item()
    assert x.grad.tolist() == [0, 2, -2, 0, 2, 2]  # 2^3 / (2 * 2)


def test_hand_worked_gradient_of_signs_and_magnitudes(device):
    """3 bits of |W| / 2 = 0, 1/8, 3/8, 1/2, .9, 1: as above; a negative weight moves the other way."""
    size = torch.tensor([0.0, 0.125, 0.375, 0.5, 0.9, 1.0], device=device)
    for sign in (1, -1):
        x = (2 * sign * size).requires_grad_()
        penalty, rate = mbq.lsb_penalty(x, bits=3, limit=torch.tensor(2.0, device=device), form="sign-magnitude")
        penalty.backward()
        assert penalty.item() == 4 and rate.item() == torch.tensor(4 / 6).item()
        assert x.grad.tolist() == [0, 4 * sign, -4 * sign, 0, 4 * sign, 4 * sign]  # 2^3 / 2


@forms
def test_all_zero_layer(device, form):
    for limit, axis in ((torch.zeros((), device=device), None), (torch.zeros(3, device=device), 1)):
        x = torch.zeros(70, 3, device=device, requires_grad=True)
        penalty, rate = mbq.lsb_penalty(x, bits=8, k=3, limit=limit, axis=axis, form=form)
        penalty.backward()
        assert penalty == 0 and rate == 0 and torch.equal(x.grad, torch.zeros_like(x))


@forms
def test_a_weight_left_to_the_penalty_loses_its_bit(device, form):
    """Gradient descent on the penalty alone drives every residual to 0, that of the top bin too."""
    x = torch.linspace(-1, 1, 257, device=device)
    limit = torch.ones((), device=device)
    for _ in range(300):
        x = x.requires_grad_()
        penalty, rate = mbq.lsb_penalty(x, bits=4, limit=limit, unit_gradient=True, form=form)
        (grad,) = torch.autograd.grad(penalty, x)
        x = (x - 0.002 * grad).detach().clamp(-1, 1)
    assert rate < 0.05


def test_float64(backend):
    if backend in ("cuda", "triton"):
        pytest.skip("float64 is for the CPU")
    x, limit = lsb_oracles.make((3, 1031), 0, torch.float64)
    leaf = x.requires_grad_()
    penalty, rate = mbq.lsb_penalty(leaf, bits=6, k=2, limit=limit, axis=0)
    assert penalty.dtype == rate.dtype == torch.float64
    residual = lsb_oracles.residuals(lsb_oracles.positions(x, limit.double(), 0), 6, 2)
    assert penalty.item() == np.abs(residual).sum() and rate.item() == np.count_nonzero(residual) / residual.size
    (grad,) = torch.autograd.grad(penalty, leaf)
    wanted = lsb_oracles.gradient(torch.zeros(x.shape), 1.0, x, limit.double(), 0, 6, 2)
    torch.testing.assert_close(grad, wanted, rtol=1e-15, atol=0)


def test_large_counts_are_exact_and_repeat(device, backend):
    shape = (3, 40011) if backend == "triton" else (3, 400011)
    x, limit = lsb_oracles.make(shape, None)
    results = []
    for count in (1, 3):
        with threads(count):
            results.append([t.item() for t in mbq.lsb_penalty(x.to(device), bits=8, k=3, limit=limit.to(device))])
    assert results[0] == results[1] == list(expected(x, limit, None, 8, 3))


def test_x_and_limit_are_all_that_is_saved():
    x, limit = lsb_oracles.make((8, 100), 0)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mbq.lsb_penalty(x.requires_grad_(), bits=8, limit=limit, axis=0)
    assert [t.data_ptr() for t in saved] == [x.data_ptr(), limit.data_ptr()]


@pytest.mark.parametrize("changes, error, message", [(c, RuntimeError, m) for c, m in BAD_X] + BAD_K + [
    ({"unit_gradient": 1}, TypeError, "unit_gradient must be True or False, got 1")],
    ids=lambda value: value[:40] if isinstance(value, str) else "")
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_errors(name, changes, error, message):
    with mbq.use_backend(name), pytest.raises(error, match="^lsb_penalty: " + message):
        mbq.lsb_penalty(**{"x": torch.ones(1, 3), "bits": 4, **changes})
