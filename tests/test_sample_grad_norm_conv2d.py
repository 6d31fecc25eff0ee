"""sample_grad_norm_conv2d and _conv1d against autograd on one sample at a time in float64: both ways to compute."""

import pytest
import torch
from oracles import DTYPES
from running import threads
from sample_norms import assert_norms, peak_memory

import mbq_kernels as mbq

# (C_in, C_out, size, options of the layer)
LAYERS = {
    "3x3": (5, 7, (9, 8), {"kernel_size": 3, "padding": 1}),
    "1x1": (6, 5, (4, 5), {"kernel_size": 1}),
    "one window": (3, 4, (5, 5), {"kernel_size": 5}),
    "strided": (4, 6, (11, 10), {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)}),
    "dilated": (3, 5, (12, 13), {"kernel_size": (3, 2), "padding": (2, 4), "dilation": (2, 3)}),
    "grouped, dilated": (6, 9, (10, 9), {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 3}),
    "depthwise": (8, 16, (6, 7), {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 8}),
    "same, even kernel": (3, 4, (7, 6), {"kernel_size": (4, 2), "padding": "same"}),
    "valid": (3, 4, (7, 6), {"kernel_size": 3, "padding": "valid"}),
    "patches": (3, 20, (16, 16), {"kernel_size": 4, "stride": 4}),
    "more padding than image": (2, 3, (2, 1), {"kernel_size": 3, "padding": 3}),
    "last rows unseen": (2, 3, (8, 8), {"kernel_size": 2, "stride": 3}),
    "1d": (5, 7, (30,), {"kernel_size": 5, "padding": 2, "stride": 2}),
    "1d grouped, dilated": (4, 8, (23,), {"kernel_size": 3, "dilation": 3, "groups": 4, "padding": "same"}),
}
WAYS = {"tiles": False, "gram": True}
every_layer = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS.keys())
every_way = pytest.mark.parametrize("gram", WAYS.values(), ids=WAYS.keys())


def make(device, case, samples=3, dtype=torch.float32, bias=True):
    """(layer, activations, grad_outputs, the op with the layer's options)"""
    inputs, outputs, size, options = case
    layer = (torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv1d)(inputs, outputs, **options, bias=bias)
    activations = torch.randn(samples, inputs, *size, device=device).to(dtype)
    with torch.no_grad():
        grad_outputs = torch.randn(layer(activations.float().cpu()).shape, device=device).to(dtype)
    op = mbq.sample_grad_norm_conv2d if len(size) == 2 else mbq.sample_grad_norm_conv1d
    return layer, activations, grad_outputs, lambda a, g, **more: op(a, g, **options, **more)


def force(monkeypatch, gram):
    """Let the public functions compute in one of the two ways."""
    import mbq_kernels.ops.sample_grad_norm_conv2d as module

    forward = torch.ops.mbq.sample_grad_norm_conv2d_forward
    monkeypatch.setattr(module, "_forward", lambda *arguments: forward(*arguments[:-1], gram))


@every_way
@every_layer
def test_norms(device, monkeypatch, case, gram):
    force(monkeypatch, gram)
    layer, a, g, op = make(device, case)
    assert_norms(op(a, g), layer, a, g, gram=gram is not False)


@every_way
@pytest.mark.parametrize("name", ["3x3", "grouped, dilated"])
def test_without_bias(device, monkeypatch, name, gram):
    force(monkeypatch, gram)
    layer, a, g, op = make(device, LAYERS[name], bias=False)
    assert_norms(op(a, g, bias=False), layer, a, g, gram=gram is not False)


@every_layer
def test_weight_factor(device, case):
    layer, a, g, op = make(device, case)
    mask = (torch.rand(layer.weight.shape, device=device) > 0.3).float()
    for factor in (mask, torch.randn_like(mask)):
        assert_norms(op(a, g, weight_factor=factor), layer, a, g, factor)


@every_way
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["3x3", "grouped, dilated", "1d"])
def test_dtypes(device, monkeypatch, name, dtype, gram):
    force(monkeypatch, gram)
    layer, a, g, op = make(device, LAYERS[name], dtype=dtype)
    norms = op(a, g)
    assert norms.dtype == torch.float32
    assert_norms(norms, layer, a, g, gram=gram is not False)


def test_float64_where_it_is_taken(device, backend):
    layer, a, g, op = make(device, LAYERS["strided"], dtype=torch.float64)
    if device == "cpu" and backend != "triton":
        assert_norms(op(a, g), layer, a, g)
    else:
        with pytest.raises(TypeError, match="float32, bfloat16 or float16"):
            op(a, g)


@every_way
@pytest.mark.parametrize("shift, deviation, zero_sum", [(17, 100, False), (1, 0.01, True)])
def test_values_that_cancel(device, monkeypatch, shift, deviation, zero_sum, gram):
    force(monkeypatch, gram)
    layer, a, g, op = make(device, LAYERS["3x3"])
    a = a * deviation + shift
    g = g - g.mean((2, 3), keepdim=True) if zero_sum else g
    assert_norms(op(a, g), layer, a, g, gram=gram is not False)


@every_way
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_stay_in_their_sample(device, monkeypatch, value, gram):
    force(monkeypatch, gram)
    for which in (0, 1):
        _, a, g, op = make(device, LAYERS["3x3"], samples=4)
        clean = op(a, g)
        (a, g)[which][2, 3, 5, 4] = value
        norms = op(a, g)
        assert not norms[2].isfinite() and torch.equal(norms[[0, 1, 3]], clean[[0, 1, 3]])


@every_way
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "off alignment"])
@pytest.mark.parametrize("name", ["3x3", "grouped, dilated", "1x1"])
def test_layouts(device, monkeypatch, name, layout, gram):
    force(monkeypatch, gram)
    _, a, g, op = make(device, LAYERS[name])
    expected = op(a, g)
    if layout == "channels_last":
        a, g = (x.to(memory_format=torch.channels_last) for x in (a, g))
    elif layout == "sliced":
        a, g = (torch.stack([x, x + 1], -1)[..., 0] for x in (a, g))
    else:
        a, g = (torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) for x in (a, g))
    torch.testing.assert_close(op(a, g), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("activations, grad_outputs", [
    ((0, 2, 5, 5), (0, 3, 3, 3)), ((2, 0, 5, 5), (2, 3, 3, 3)), ((2, 2, 5, 5), (2, 0, 3, 3)),
    ((2, 2, 2, 5), (2, 3, 0, 3))], ids=["no sample", "no input", "no output", "no position"])
def test_empty(device, activations, grad_outputs):
    a, g = torch.randn(activations, device=device), torch.randn(grad_outputs, device=device)
    bias = g.double().sum((2, 3)).square().sum(1)
    factor = torch.ones(grad_outputs[1], activations[1], 3, 3, device=device)
    for options in ({}, {"weight_factor": factor}):
        norms = mbq.sample_grad_norm_conv2d(a, g, kernel_size=3, **options)
        torch.testing.assert_close(norms.double(), bias, rtol=1e-5, atol=0)
    assert mbq.sample_grad_norm_conv2d(a, g, kernel_size=3, bias=False).tolist() == [0] * len(a)


def test_a_pointwise_convolution_is_a_linear_layer(device):
    _, a, g, op = make(device, LAYERS["1x1"])
    linear = mbq.sample_grad_norm_linear(a.movedim(1, -1), g.movedim(1, -1))
    torch.testing.assert_close(op(a, g), linear, rtol=1e-5, atol=0)


@every_way
def test_memory_is_that_of_tiles(backend, monkeypatch, gram):
    """Not the windows (9 MiB a sample, 36 together) and not the samples' gradients (9 MiB each)."""
    if backend != "cpu":
        pytest.skip("the reference forms a sample's gradient, and the interpreter is not what runs on a GPU")
    force(monkeypatch, gram)
    _, a, g, op = make("cpu", (512, 512, (22, 22), {"kernel_size": 3, "padding": 1}), samples=4)
    with threads(1):
        assert peak_memory(lambda: op(a, g)) <= 6 * 2**20


A, G = torch.randn(2, 4, 6, 6), torch.randn(2, 6, 4, 4)
WRONG = {
    "kernel_size must be an integer or a sequence of integers, got 3.0": {"kernel_size": 3.0},
    "kernel_size must be 2 integers >= 1, got .3, 3, 3.": {"kernel_size": (3, 3, 3)},
    "stride must be 2 integers >= 1, got 0": {"stride": 0},
    "dilation must be an integer or a sequence of integers, got True": {"dilation": True},
    "groups must be 1 integer >= 1, got 0": {"groups": 0},
    "activations must have a multiple of groups .3. channels, got 4": {"groups": 3},
    "grad_outputs must have a multiple of groups .4. channels, got 6": {"groups": 4},
    "padding must be 'same', 'valid' or integers, got 'full'": {"padding": "full"},
    "padding must be 2 integers >= 0, got -1": {"padding": -1},
    "padding 'same' must have stride 1, got .2, 2.": {"padding": "same", "stride": 2},
    "grad_outputs must be .2, C_out, 6, 6. for activations of shape .2, 4, 6, 6., got .2, 6, 4, 4.": {"padding": 1},
    "weight_factor must have the weight's shape .6, 4, 3, 3., got .6, 36.": {"weight_factor": torch.ones(6, 36)},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors(message):
    with pytest.raises((TypeError, ValueError), match="^sample_grad_norm_conv2d: " + message):
        mbq.sample_grad_norm_conv2d(A, G, **{"kernel_size": 3, **WRONG[message]})


def test_errors_of_shapes_and_of_one_dimension():
    with pytest.raises(ValueError, match="^sample_grad_norm_conv2d: grad_outputs must be .2, C_out, 4, 4. for"):
        mbq.sample_grad_norm_conv2d(A, G[:1], kernel_size=3)
    with pytest.raises(ValueError, match=r"^sample_grad_norm_conv2d: activations and .* must be \(N, C, H, W\), got"):
        mbq.sample_grad_norm_conv2d(A[0], G[0], kernel_size=3)
    with pytest.raises(ValueError, match=r"^sample_grad_norm_conv1d: activations and .* must be \(N, C, L\), got"):
        mbq.sample_grad_norm_conv1d(A, G, kernel_size=3)
    with pytest.raises(ValueError, match="^sample_grad_norm_conv1d: kernel_size must be 1 integer >= 1, got .3, 3."):
        mbq.sample_grad_norm_conv1d(A[0], G[0], kernel_size=(3, 3))
