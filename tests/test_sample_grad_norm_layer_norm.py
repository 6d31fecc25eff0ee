"""sample_grad_norm_layer_norm against autograd through nn.LayerNorm, one sample at a time in float64."""

import oracles
import pytest
import torch
import torch.nn.functional as F

import mbq_kernels as mbq

dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
SHAPES = [((1, 1), (1,)), ((5, 7), (7,)), ((3, 17, 33), (33,)), ((2, 3, 5, 8), (5, 8)), ((2, 300, 130), (130,)),
          ((4, 6, 5), (6, 5))]


def oracle(x, grads, shape, bias):
    """Squared norms of weight (and bias) gradients of every sample, by autograd through the layer."""
    weight, shift = torch.randn(shape).double().requires_grad_(), torch.randn(shape).double().requires_grad_()
    leaves = (weight, shift) if bias else (weight,)
    norms = []
    for one, grad in zip(x.cpu().double(), grads.cpu().double(), strict=True):
        y = F.layer_norm(one, shape, weight, shift)
        norms.append(sum(g.square().sum() for g in torch.autograd.grad(y, leaves, grad)))
    return torch.stack(norms)


@dtypes
@pytest.mark.parametrize("shape, normalized_shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_norms(device, dtype, shape, normalized_shape, bias):
    x, grads = (torch.randn(shape) * 100 + 17).to(device), torch.randn(shape).to(device, dtype)
    normalized = F.layer_norm(x, normalized_shape)
    actual = mbq.sample_grad_norm_layer_norm(normalized, grads, normalized_shape=normalized_shape, bias=bias)
    assert actual.dtype == torch.float32 and actual.shape == shape[:1]
    want = oracle(x, grads, normalized_shape, bias)
    size = grads.cpu().double().flatten(1).square().sum(1)
    oracles.assert_within(actual, want, 1e-5 * want + 1e-6 * size, "norms")  # x_hat was rounded to float32


@dtypes
def test_of_given_values_alone(device, dtype):
    normalized, grads = (torch.randn(4, 50, 20).to(device, dtype) for _ in range(2))
    x, g = normalized.cpu().double(), grads.cpu().double()
    parts = (g * x).sum(1).square().sum(1), g.sum(1).square().sum(1)
    for weight in (True, False):
        for bias in (True, False):
            want = weight * parts[0] + bias * parts[1]
            actual = mbq.sample_grad_norm_layer_norm(normalized, grads, normalized_shape=20, weight=weight, bias=bias)
            oracles.assert_within(actual, want, 1e-6 * want, "norms")


def test_gradients_that_sum_to_nothing(device):
    grads = torch.randn(2, 64, 10)
    grads = torch.cat([grads, -grads], 1) * 1e3
    grads[:, 0] += 1e-1
    normalized, grads = torch.ones_like(grads).to(device), grads.to(device)
    want = grads.cpu().double().sum(1).square().sum(1)
    actual = mbq.sample_grad_norm_layer_norm(normalized, grads, normalized_shape=10, weight=False)
    oracles.assert_within(actual, want, 1e-5 * want, "norms")


def test_a_hook_on_the_layer_can_call_it(device):
    layer, x = torch.nn.LayerNorm(12).to(device), torch.randn(3, 5, 12, device=device)
    got = {}

    def backward(module, grad_input, grad_output):
        normalized = F.layer_norm(x, module.normalized_shape, eps=module.eps)
        got["norms"] = mbq.sample_grad_norm_layer_norm(normalized, grad_output[0],
                                                       normalized_shape=module.normalized_shape)

    layer.register_full_backward_hook(backward)
    layer(x.requires_grad_()).square().sum().backward()
    grads = 2 * F.layer_norm(x, (12,), layer.weight, layer.bias)
    want = oracle(x.detach(), grads.detach(), (12,), True)
    oracles.assert_within(got["norms"], want, 1e-5 * want, "norms")


def test_layouts_and_empty(device):
    normalized, grads = torch.randn(4, 6, 8, device=device), torch.randn(4, 6, 8, device=device)
    call = lambda x, g: mbq.sample_grad_norm_layer_norm(x, g, normalized_shape=8)  # noqa: E731
    expected = call(normalized, grads)
    for (_, x), (_, g) in zip(oracles.layouts(normalized), oracles.layouts(grads), strict=True):
        assert torch.equal(call(x, grads), expected) and torch.equal(call(normalized, g), expected)
    assert call(normalized[:0], grads[:0]).shape == (0,)
    assert call(normalized[:, :0], grads[:, :0]).tolist() == [0] * 4


def test_what_is_not_finite_is_seen(device):
    normalized, grads = torch.randn(3, 6, 4, device=device), torch.randn(3, 6, 4, device=device)
    grads[1, 2, 3] = torch.nan
    grads[2, 0, 0] = torch.inf
    norms = mbq.sample_grad_norm_layer_norm(normalized, grads, normalized_shape=4)
    assert norms.isnan().tolist() == [False, True, False] and norms.isinf().tolist() == [False, False, True]


X = torch.randn(2, 3, 4)
ERRORS = [
    ({"grad_outputs": X[:1]}, ValueError, r"grad_outputs must have the shape of normalized, \(2, 3, 4\), "
                                          r"got \(1, 3, 4\)"),
    ({"normalized_shape": 3}, ValueError, r"normalized must be \(N, ..., \*normalized_shape\) with normalized_shape "
                                          r"\(3,\), got \(2, 3, 4\)"),
    ({"normalized_shape": (2, 3, 4)}, ValueError, r"normalized must be \(N, ..., \*normalized_shape\) with "
                                                  r"normalized_shape \(2, 3, 4\), got \(2, 3, 4\)"),
    ({"grad_outputs": X.double()}, TypeError, "grad_outputs must be float64 exactly when normalized is, got "
                                              "torch.float64 beside torch.float32"),
    ({"bias": None}, TypeError, "bias must be True or False, got None"),
]


@pytest.mark.parametrize("options, error, message", ERRORS, ids=[row[2][:40] for row in ERRORS])
def test_errors(options, error, message):
    given = {"normalized": X, "grad_outputs": X, "normalized_shape": 4, **options}
    with pytest.raises(error, match=f"^sample_grad_norm_layer_norm: {message}$"):
        mbq.sample_grad_norm_layer_norm(given.pop("normalized"), given.pop("grad_outputs"), **given)
