"""round_clamp_lsb: the bits of round_clamp and lsb_penalty, and the sum of their gradients."""

import lsb_oracles
import oracles
import pytest
import torch
from test_extract_lsb import BAD_K
from test_round_clamp import BAD_X, forms, near_edges, weights_near_edges

import mbq_kernels as mbq

shapes = pytest.mark.parametrize("shape, axis", lsb_oracles.SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def check(device, x, limit, axis, bits, k, form="offset", **options):
    given = {"bits": bits, "limit": None if limit is None else limit.to(device), "axis": axis, "form": form}
    leaf = x.to(device).requires_grad_()
    value, penalty, rate = mbq.round_clamp_lsb(leaf, k=k, **given, **options)
    oracles.assert_same(value, mbq.round_clamp(leaf, **given))
    for one, other in zip((penalty, rate), mbq.lsb_penalty(leaf, k=k, **given), strict=True):
        oracles.assert_same(one, other)
    assert not rate.requires_grad and value.stride() == torch.empty_like(leaf).stride()
    grad = torch.randn(x.shape, device=device).to(x.dtype)
    (actual,) = torch.autograd.grad((value, penalty), leaf, (grad, torch.tensor(0.75, device=device)))
    wanted = lsb_oracles.gradient(grad, 0.75, x, limit, axis, bits, k, form=form, **options)
    bound = lsb_oracles.gradient_tolerance(grad, 0.75, x, limit, axis, bits, x.dtype)
    oracles.assert_within(actual, wanted, bound, "grad x")
    assert actual.dtype == x.dtype and actual.stride() == torch.empty_like(leaf).stride()


@shapes
@dtypes
@pytest.mark.parametrize("bits, k", [(8, 1), (4, 3)])
@forms
def test_both_from_one_read(device, shape, axis, dtype, bits, k, form):
    x, limit = lsb_oracles.make(shape, axis, dtype)
    for _, given in oracles.layouts(x) if x.dim() and x.numel() else [("as it is", x)]:
        check(device, given, limit, axis, bits, k, form)
    check(device, torch.rand(shape).to(dtype), None, None, bits, k, form)


@pytest.mark.parametrize("unit_gradient", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
@forms
def test_ties_and_ends(device, bits, unit_gradient, form):
    check(device, near_edges(bits, torch.float32), None, None, bits, 1, form, unit_gradient=unit_gradient)
    limit = torch.tensor([1.7])
    x = weights_near_edges(bits, torch.float32, limit, form)
    check(device, x, limit, None, bits, 1, form, unit_gradient=unit_gradient)


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (3, 40, 9, 7)], ids=str)
@forms
def test_channels_last(device, shape, form):
    x, limit = lsb_oracles.make(shape, 1)
    check(device, x.to(memory_format=torch.channels_last), limit, 1, 8, 1, form)


def test_unused_outputs(device):
    x, limit = lsb_oracles.make((4, 33), None)
    leaf, limit = x.to(device).requires_grad_(), limit.to(device)
    value, penalty, _ = mbq.round_clamp_lsb(leaf, bits=4, limit=limit)
    assert torch.equal(torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0], torch.ones_like(leaf))
    (alone,) = torch.autograd.grad(mbq.lsb_penalty(leaf, bits=4, limit=limit)[0], leaf)
    oracles.assert_same(torch.autograd.grad(penalty, leaf)[0], alone)


def test_gradient_that_is_not_dense(device):
    x, limit = lsb_oracles.make((6, 35), None)
    leaf, limit = x.to(device).requires_grad_(), limit.to(device)
    value = mbq.round_clamp_lsb(leaf, bits=4, limit=limit)[0]
    grad = torch.randn(35, 6, device=device).t()
    oracles.assert_same(torch.autograd.grad(value, leaf, grad)[0], grad)


@forms
def test_all_zero_layer_and_empty(device, form):
    for shape in ((70, 3), (0, 3)):
        x = torch.zeros(shape, device=device, requires_grad=True)
        value, penalty, rate = mbq.round_clamp_lsb(x, bits=8, limit=torch.zeros(1, device=device), form=form)
        (grad,) = torch.autograd.grad(value.sum() + penalty, x)
        assert penalty == 0 and rate == 0
        assert torch.equal(value, torch.zeros_like(x)) and torch.equal(grad, torch.ones_like(x))


@forms
def test_float64(backend, form):
    if backend in ("cuda", "triton"):
        pytest.skip("float64 is for the CPU")
    x, limit = lsb_oracles.make((3, 1031), 0, torch.float64)
    leaf, grad = x.requires_grad_(), torch.randn(3, 1031, dtype=torch.float64)
    value, penalty, _ = mbq.round_clamp_lsb(leaf, bits=6, k=2, limit=limit, axis=0, form=form)
    oracles.assert_same(value, lsb_oracles.values(x, limit.double(), 0, 6, form))
    (actual,) = torch.autograd.grad((value, penalty), leaf, (grad, torch.tensor(0.3).double()))
    wanted = lsb_oracles.gradient(grad, torch.tensor(0.3).double(), x, limit.double(), 0, 6, 2, form=form)
    torch.testing.assert_close(actual, wanted, rtol=1e-14, atol=1e-14)


def test_x_and_limit_are_all_that_is_saved():
    x, limit = lsb_oracles.make((8, 100), 0)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mbq.round_clamp_lsb(x.requires_grad_(), bits=8, limit=limit, axis=0)
    assert [t.data_ptr() for t in saved] == [x.data_ptr(), limit.data_ptr()]


@pytest.mark.parametrize("changes, error, message", [(c, RuntimeError, m) for c, m in BAD_X] + BAD_K + [
    ({"unit_gradient": None}, TypeError, "unit_gradient must be True or False, got None")],
    ids=lambda value: value[:40] if isinstance(value, str) else "")
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_errors(name, changes, error, message):
    with mbq.use_backend(name), pytest.raises(error, match="^round_clamp_lsb: " + message):
        mbq.round_clamp_lsb(**{"x": torch.ones(1, 3), "bits": 4, **changes})
