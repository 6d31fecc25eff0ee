"""sample_grad_norm_linear against autograd on one sample at a time in float64: both ways to compute it."""

import pytest
import torch
from oracles import DTYPES
from running import threads
from sample_norms import assert_norms, peak_memory

import mbq_kernels as mbq

# (N, middle dimensions, d_in, d_out): vectors, one element, primes, more than a tile, images
SHAPES = [(3, (), 5, 4), (1, (), 1, 1), (2, (1,), 7, 3), (3, (5,), 31, 37), (2, (67,), 19, 3), (4, (3, 7), 33, 16),
          (2, (130,), 70, 150)]
WAYS = {"tiles": False, "gram": True, "cheaper": None}
every_way = pytest.mark.parametrize("gram", WAYS.values(), ids=WAYS.keys())


def make(device, samples, middle, inputs, outputs, dtype=torch.float32):
    activations = torch.randn(samples, *middle, inputs, device=device).to(dtype)
    return activations, torch.randn(samples, *middle, outputs, device=device).to(dtype)


def raw(activations, grad_outputs, weight_factor=None, bias=True, gram=None):
    """The op with the way it computes given."""
    rows = [x.detach().reshape(len(x), x.shape[1:-1].numel(), x.shape[-1]) for x in (activations, grad_outputs)]
    return torch.ops.mbq.sample_grad_norm_linear_forward(*rows, weight_factor, bias, gram)


def layer(activations, grad_outputs, bias=True):
    return torch.nn.Linear(activations.shape[-1], grad_outputs.shape[-1], bias=bias)


@every_way
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms(device, shape, bias, gram):
    a, g = make(device, *shape)
    assert_norms(raw(a, g, None, bias, gram), layer(a, g, bias), a, g, gram=gram is not False)
    assert_norms(mbq.sample_grad_norm_linear(a, g, bias=bias), layer(a, g, bias), a, g, gram=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weight_factor(device, shape):
    a, g = make(device, *shape)
    mask = (torch.rand(g.shape[-1], a.shape[-1], device=device) > 0.3).float()
    for factor in (mask, torch.randn_like(mask), torch.zeros_like(mask)):
        assert_norms(mbq.sample_grad_norm_linear(a, g, weight_factor=factor), layer(a, g), a, g, factor)
    ones = mbq.sample_grad_norm_linear(a, g, weight_factor=torch.ones_like(mask))
    assert_norms(ones, layer(a, g), a, g)


@every_way
@pytest.mark.parametrize("dtypes", [(d, d) for d in DTYPES] + [(torch.float32, torch.bfloat16)], ids=str)
def test_dtypes(device, dtypes, gram):
    """The inputs are what they were rounded to; nothing else is rounded to a storage dtype."""
    a, g = make(device, 3, (35,), 24, 40)
    a, g = a.to(dtypes[0]), g.to(dtypes[1])
    norms = raw(a, g, gram=gram)
    assert norms.dtype == torch.float32
    assert_norms(norms, layer(a, g), a, g, gram=gram is not False)


def test_float64_where_it_is_taken(device, backend):
    a, g = make(device, 2, (9,), 5, 6, torch.float64)
    if device == "cpu" and backend != "triton":
        norms = mbq.sample_grad_norm_linear(a, g)
        assert norms.dtype == torch.float64
        assert_norms(norms, layer(a, g), a, g)
    else:
        with pytest.raises(TypeError, match="float32, bfloat16 or float16"):
            mbq.sample_grad_norm_linear(a, g)


@every_way
@pytest.mark.parametrize("case", ["mean 17, deviation 100", "gradients that sum to zero", "equal rows", "tiny", "huge"])
def test_values_that_cancel(device, case, gram):
    a, g = make(device, 3, (96,), 48, 32)
    if case.startswith("mean"):
        a = a * 100 + 17
    elif case.startswith("gradients"):
        g = g - g.mean(1, keepdim=True)
        a = a * 0.01 + 1
    elif case == "equal rows":
        a, g = a[:, :1].expand_as(a), (g - g.mean(1, keepdim=True)) * 1e3
    else:
        a, g = a * (1e-12 if case == "tiny" else 1e12), g * (1e-3 if case == "tiny" else 1e3)
    norms = raw(a, g, None, True, gram)
    if case == "equal rows":  # true norms are those of rounding, with tiles too: within the bound of Gram products
        assert_norms(norms, layer(a, g), a, g, gram=True)
    else:
        assert_norms(norms, layer(a, g), a, g, gram=gram is not False)


@pytest.mark.parametrize("gradient", [1e-21, 1e21])
def test_vectors_whose_squares_are_no_float32(device, backend, gradient):
    if backend == "triton":
        pytest.skip("Gram products in float32")
    a, g = make(device, 3, (1,), 20, 24)
    a, g = a / gradient * (100 if gradient < 1 else 1), g * gradient
    want = a.double().square().sum((1, 2)) * g.double().square().sum((1, 2))
    torch.testing.assert_close(mbq.sample_grad_norm_linear(a, g, bias=False), want.float(), rtol=1e-5, atol=0)


@every_way
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_stay_in_their_sample(device, value, gram):
    for which in (0, 1):
        a, g = make(device, 4, (6,), 20, 24)
        clean = raw(a, g, gram=gram)
        (a, g)[which][2, 3, 5] = value
        norms = raw(a, g, gram=gram)
        assert not norms[2].isfinite() and torch.equal(norms[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize("shape", [(0, (5,), 3, 4), (3, (0,), 3, 4), (3, (5,), 0, 4), (3, (5,), 3, 0), (0, (), 3, 4),
                                   (2, (3, 0), 3, 4)], ids=str)
def test_empty(device, shape):
    a, g = make(device, *shape)
    norms = mbq.sample_grad_norm_linear(a, g)
    bias = g.reshape(len(g), g.shape[1:-1].numel(), g.shape[-1]).double().sum(1).square().sum(1)
    torch.testing.assert_close(norms.double(), bias, rtol=1e-5, atol=0)
    factor = torch.ones(shape[3], shape[2], device=device)
    factored = mbq.sample_grad_norm_linear(a, g, weight_factor=factor)
    torch.testing.assert_close(factored.double(), bias, rtol=1e-5, atol=0)
    assert mbq.sample_grad_norm_linear(a, g, bias=False).tolist() == [0] * shape[0]


@every_way
@pytest.mark.parametrize("layout", ["positions last", "sliced", "expanded", "reversed", "off alignment"])
def test_layouts(device, layout, gram):
    a, g = make(device, 3, (40,), 26, 38)
    expected = raw(a, g, gram=gram)
    if layout == "positions last":
        a, g = a.mT.contiguous().mT, g.mT.contiguous().mT
    elif layout == "sliced":
        a, g = (torch.stack([x, x + 1], -1)[..., 0] for x in (a, g))
    elif layout == "expanded":
        a, g = a[:1].expand_as(a), g[:, :1].expand_as(g)
        expected = raw(a.contiguous(), g.contiguous(), gram=gram)
    elif layout == "reversed":
        a, g = (x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in (a, g))
    else:
        a, g = (torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) for x in (a, g))
    torch.testing.assert_close(raw(a, g, gram=gram), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(mbq.sample_grad_norm_linear(a, g), expected, rtol=1e-4, atol=0)


def test_samples_do_not_see_each_other(device):
    a, g = make(device, 5, (33,), 20, 24)
    together = mbq.sample_grad_norm_linear(a, g)
    alone = torch.cat([mbq.sample_grad_norm_linear(a[n:n + 1], g[n:n + 1]) for n in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


def test_no_gradient_and_no_autocast(device):
    a, g = make(device, 3, (9,), 8, 8)
    expected = mbq.sample_grad_norm_linear(a, g)
    with torch.autocast(device, dtype=torch.bfloat16):
        norms = mbq.sample_grad_norm_linear(a.requires_grad_(), g.requires_grad_())
    assert torch.equal(norms, expected) and not norms.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_way
def test_memory_is_that_of_tiles(backend, gram, dtype):
    """Not the samples' gradients (24 MiB together, 4 MiB each) and not their matrices of T x T (16 MiB each)."""
    if backend != "cpu":
        pytest.skip("the reference forms a sample's gradient, and the interpreter is not what runs on a GPU")
    a, g = make("cpu", 6, (2048,), 1024, 1024, dtype)
    with threads(1):  # each has its own tiles
        assert peak_memory(lambda: raw(a, g, gram=gram)) <= 6 * 2**20
    gradients = peak_memory(lambda: torch.einsum("nti,nto->noi", a, g).square())
    assert gradients >= a.element_size() * 6 * 2**20  # so the measure sees what it must not find above


A, G = torch.randn(3, 5, 7), torch.randn(3, 5, 4)
WRONG = {
    "activations must be a tensor, got list": ([[1.0]], G, {}),
    "grad_outputs must be float32, bfloat16, float16 or float64, got torch.int64": (A, G.long(), {}),
    "grad_outputs must be float64 exactly when activations is, got torch.float64 beside torch.float32":
        (A, G.double(), {}),
    "bias must be True or False, got 1": (A, G, {"bias": 1}),
    "activations and grad_outputs must be .N, ..., d_in. and .N, ..., d_out., got shapes .3, 5, 7. and .2, 5, 4.":
        (A, G[:2], {}),
    "activations and grad_outputs must be .*, got shapes .3, 5, 7. and .3, 4.": (A, G[:, 0], {}),
    "activations and grad_outputs must be .*, got shapes .7,. and .4,.": (A[0, 0], G[0, 0], {}),
    "weight_factor must have the weight's shape .4, 7., got .7, 4.": (A, G, {"weight_factor": torch.ones(7, 4)}),
    "weight_factor must be float32, bfloat16, float16 or float64, got torch.bool":
        (A, G, {"weight_factor": torch.ones(4, 7).bool()}),
    "activations must be a dense tensor, got layout torch.sparse_coo": (A.to_sparse(), G, {}),
    "weight_factor must be on activations' device cpu, got meta":
        (A, G, {"weight_factor": torch.ones(4, 7, device="meta")}),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message):
    activations, grad_outputs, options = WRONG[message]
    with pytest.raises((TypeError, ValueError), match="^sample_grad_norm_linear: " + message):
        mbq.sample_grad_norm_linear(activations, grad_outputs, **options)


def test_gram_products_refuse_a_factor(device):
    with pytest.raises(RuntimeError, match="sample_grad_norm_linear: Gram products must have no weight_factor"):
        raw(A.to(device), G.to(device), torch.ones(4, 7, device=device), True, True)
