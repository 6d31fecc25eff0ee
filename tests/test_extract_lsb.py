"""extract_lsb: residuals against NumPy's integers, and the statistics that make round-clamp what it is."""

import lsb_oracles
import oracles
import pytest
import torch
from test_round_clamp import BAD_FORM, BAD_X, forms, near_edges, weights_near_edges

import mbq_kernels as mbq

shapes = pytest.mark.parametrize("shape, axis", lsb_oracles.SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def expected(x, limit, axis, bits, k, form="offset"):
    return torch.as_tensor(lsb_oracles.residuals(lsb_oracles.positions(x, limit, axis, form), bits, k)).to(torch.int8)


@shapes
@dtypes
@pytest.mark.parametrize("bits, k, form", [*((b, k, "offset") for b, k in lsb_oracles.BITS), (8, 1, "sign-magnitude"),
                                           (5, 3, "sign-magnitude")])
def test_residuals(device, shape, axis, dtype, bits, k, form):
    x, limit = lsb_oracles.make(shape, axis, dtype)
    wanted = expected(x, limit, axis, bits, k, form)
    for name, given in oracles.layouts(x) if x.dim() and x.numel() else [("as it is", x)]:
        given = given.to(device)
        actual = mbq.extract_lsb(given, bits=bits, k=k, limit=limit.to(device), axis=axis, form=form)
        assert actual.dtype == torch.int8 and torch.equal(actual.cpu(), wanted), name
        assert actual.stride() == torch.empty_like(given).stride(), name


@dtypes
@pytest.mark.parametrize("bits, k", [(b, k) for b in range(2, 9) for k in (1, 2, 3) if k < b])
def test_ties_and_ends(device, dtype, bits, k):
    u = near_edges(bits, dtype)
    actual = mbq.extract_lsb(u.to(device), bits=bits, k=k)
    assert torch.equal(actual.cpu(), expected(u, None, None, bits, k))
    assert actual.min() == -(2 ** (k - 1)) if bits > k + 1 else True
    assert actual.max() == 2**k - 1  # the top bin, where the coarser code is clamped


@pytest.mark.parametrize("bits, k", [(8, 1), (4, 3), (2, 1)])
@forms
def test_ties_and_ends_of_weights(device, bits, k, form):
    """In the sign-magnitude form a weight and its negative have the residual of their magnitude."""
    for limit in torch.tensor([1.7, 3e38]):
        x = weights_near_edges(bits, torch.float32, limit, form)
        actual, negative = (mbq.extract_lsb(sign * x.to(device), bits=bits, k=k, limit=limit.to(device), form=form)
                            for sign in (1, -1))
        assert torch.equal(actual.cpu(), expected(x, limit, None, bits, k, form))
        assert torch.equal(actual, negative) == (form == "sign-magnitude")


def test_statistics_of_uniform_positions(device):
    """A lost bit rounds up as often as down; DoReFa's scaling by 2^n - 1 rounds up eight times as often."""
    u = (torch.arange(65536, device=device) + 0.5) / 65536
    residual = mbq.extract_lsb(u, bits=8)
    assert abs((residual > 0).float().mean() - 0.254) < 5e-4 and abs((residual < 0).float().mean() - 0.248) < 5e-4
    scaled = (255 * u).round() - 2 * (127 * u).round()
    assert abs((scaled > 0).float().mean() - 0.500) < 5e-4 and abs((scaled < 0).float().mean() - 0.062) < 1e-3


def test_float64(backend):
    if backend in ("cuda", "triton"):
        pytest.skip("float64 is for the CPU")
    x, limit = lsb_oracles.make((3, 1031), 0, torch.float64)
    actual = mbq.extract_lsb(x, bits=6, k=2, limit=limit, axis=0)
    assert torch.equal(actual, expected(x, limit.double(), 0, 6, 2))


def test_no_gradient_flows(device):
    x = torch.rand(5, device=device, requires_grad=True)
    residual = mbq.extract_lsb(x, bits=4)
    assert residual.dtype == torch.int8 and not residual.requires_grad


BAD_K = [({"k": 4}, ValueError, "k must be between 1 and 3 and less than bits, 4, got 4"),
         ({"k": 0}, ValueError, "k must be between 1 and 3 and less than bits, 4, got 0"),
         ({"bits": 2, "k": 2}, ValueError, "k must be between 1 and 3 and less than bits, 2, got 2"),
         ({"bits": 1}, ValueError, "k must be between 1 and 3 and less than bits, 1, got 1"),
         ({"k": 1.0}, TypeError, r"k must be an integer, got 1\.0"),
         ({"k": True}, TypeError, "k must be an integer, got True"),
         ({"bits": 9}, ValueError, "bits must be between 1 and 8, got 9"),
         ({"x": [1.0]}, TypeError, "x must be a tensor, got list"), *BAD_FORM]


@pytest.mark.parametrize("changes, error, message", [(c, RuntimeError, m) for c, m in BAD_X] + BAD_K,
                         ids=lambda value: value[:40] if isinstance(value, str) else "")
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_errors(name, changes, error, message):
    with mbq.use_backend(name), pytest.raises(error, match="^extract_lsb: " + message):
        mbq.extract_lsb(**{"x": torch.ones(1, 3), "bits": 4, **changes})
