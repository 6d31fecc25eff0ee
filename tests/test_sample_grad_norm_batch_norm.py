"""sample_grad_norm_batch_norm against autograd through nn.BatchNorm in eval mode, one sample at a time in float64."""

import oracles
import pytest
import torch
import torch.nn.functional as F

import mbq_kernels as mbq

dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
SHAPES = [(1, 1), (5, 7), (3, 17, 33), (2, 8, 5, 9), (2, 130, 40, 40), (4, 3, 2, 2, 3)]


def make(shape, dtype, device):
    """(x, running mean, running variance, x_hat, gradients)"""
    x, mean, variance = torch.randn(shape) * 100 + 17, torch.randn(shape[1]) * 10, torch.rand(shape[1]) * 1e4 + 1
    return x, mean, variance, F.batch_norm(x, mean, variance).to(device), torch.randn(shape).to(device, dtype)


def oracle(x, mean, variance, grads, bias):
    weight, shift = (torch.randn(len(mean)).double().requires_grad_() for _ in range(2))
    leaves = (weight, shift) if bias else (weight,)
    norms = []
    for n in range(len(x)):
        y = F.batch_norm(x[n:n + 1].double(), mean.double(), variance.double(), weight, shift)
        norms.append(sum(g.square().sum() for g in torch.autograd.grad(y, leaves, grads[n:n + 1].cpu().double())))
    return torch.stack(norms)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_norms(device, dtype, shape, bias):
    x, mean, variance, normalized, grads = make(shape, dtype, device)
    actual = mbq.sample_grad_norm_batch_norm(normalized, grads, bias=bias)
    assert actual.dtype == torch.float32 and actual.shape == shape[:1]
    want = oracle(x, mean, variance, grads, bias)
    size = grads.cpu().double().flatten(1).square().sum(1)
    oracles.assert_within(actual, want, 1e-5 * want + 1e-6 * size, "norms")  # x_hat was rounded to float32


@dtypes
def test_of_given_values_alone(device, dtype):
    normalized, grads = (torch.randn(4, 20, 7, 7).to(device, dtype) for _ in range(2))
    x, g = normalized.cpu().double(), grads.cpu().double()
    parts = (g * x).sum((2, 3)).square().sum(1), g.sum((2, 3)).square().sum(1)
    for weight in (True, False):
        for bias in (True, False):
            want = weight * parts[0] + bias * parts[1]
            actual = mbq.sample_grad_norm_batch_norm(normalized, grads, weight=weight, bias=bias)
            oracles.assert_within(actual, want, 1e-6 * want, "norms")


def test_group_norm_is_the_same_sum(device):
    x, grads = torch.randn(3, 6, 4, 4, device=device), torch.randn(3, 6, 4, 4, device=device)
    weight = torch.ones(6).double().requires_grad_()
    want = torch.stack([torch.autograd.grad(F.group_norm(x[n:n + 1].cpu().double(), 2, weight), weight,
                                            grads[n:n + 1].cpu().double())[0].square().sum() for n in range(3)])
    actual = mbq.sample_grad_norm_batch_norm(F.group_norm(x, 2), grads, bias=False)
    oracles.assert_within(actual, want, 1e-5 * want, "norms")


def test_gradients_that_sum_to_nothing(device):
    grads = torch.randn(2, 10, 64)
    grads = torch.cat([grads, -grads], 2) * 1e3
    grads[..., 0] += 1e-1
    normalized, grads = torch.ones_like(grads).to(device), grads.to(device)
    want = grads.cpu().double().sum(2).square().sum(1)
    oracles.assert_within(mbq.sample_grad_norm_batch_norm(normalized, grads, weight=False), want, 1e-5 * want, "norms")


def test_layouts_and_empty(device):
    normalized, grads = torch.randn(4, 6, 8, 3, device=device), torch.randn(4, 6, 8, 3, device=device)
    expected = mbq.sample_grad_norm_batch_norm(normalized, grads)
    for (_, x), (_, g) in zip(oracles.layouts(normalized), oracles.layouts(grads), strict=True):
        assert torch.equal(mbq.sample_grad_norm_batch_norm(x, grads), expected)
        assert torch.equal(mbq.sample_grad_norm_batch_norm(normalized, g), expected)
    last = [t.to(memory_format=torch.channels_last) for t in (normalized, grads)]
    torch.testing.assert_close(mbq.sample_grad_norm_batch_norm(*last), expected)
    assert mbq.sample_grad_norm_batch_norm(normalized[:0], grads[:0]).shape == (0,)
    assert mbq.sample_grad_norm_batch_norm(normalized[:, :, :0], grads[:, :, :0]).tolist() == [0] * 4


def test_what_is_not_finite_is_seen(device):
    normalized, grads = torch.randn(3, 6, 4, device=device), torch.randn(3, 6, 4, device=device)
    grads[1, 2, 3] = torch.nan
    grads[2, 0, 0] = torch.inf
    norms = mbq.sample_grad_norm_batch_norm(normalized, grads)
    assert norms.isnan().tolist() == [False, True, False] and norms.isinf().tolist() == [False, False, True]


def test_more_samples_than_a_grid_has_rows(device, backend):
    if (device, backend) == ("cpu", "triton"):
        pytest.skip("takes minutes in Triton's interpreter")
    grads = torch.randn(70_000, 2, 1, device=device)
    want = 2 * grads.double().square().sum((1, 2))
    actual = mbq.sample_grad_norm_batch_norm(torch.ones_like(grads), grads)
    oracles.assert_within(actual, want.cpu(), 1e-6 * want.cpu(), "norms")


X = torch.randn(2, 3, 4)
ERRORS = [
    ((X, X[:1]), {}, ValueError, r"grad_outputs must have the shape of normalized, \(2, 3, 4\), got \(1, 3, 4\)"),
    ((X[0, 0], X[0, 0]), {}, ValueError, r"normalized must be \(N, C, ...\), got shape \(4,\)"),
    ((X.int(), X), {}, TypeError, "normalized must be float32, bfloat16, float16 or float64, got torch.int32"),
    ((X, X.double()), {}, TypeError, "grad_outputs must be float64 exactly when normalized is, got torch.float64 "
                                     "beside torch.float32"),
    ((X, X), {"weight": 1}, TypeError, "weight must be True or False, got 1"),
]


@pytest.mark.parametrize("arguments, options, error, message", ERRORS, ids=[row[3][:40] for row in ERRORS])
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=f"^sample_grad_norm_batch_norm: {message}$"):
        mbq.sample_grad_norm_batch_norm(*arguments, **options)
