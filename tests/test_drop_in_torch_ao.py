"""accelerate on torch.ao's fake-quantizers: outputs, gradients, observer and buffers as the original's, bit for bit."""

import copy
from functools import partial

import pytest
import torch
from torch.ao.quantization import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    default_fixed_qparams_range_0to1_observer,
)
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

import mbq_kernels
from mbq_train import accelerate, restore
from mbq_train.drop_in.replacement import is_replaced

TENSOR, CHANNEL = MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
S8 = {"dtype": torch.qint8, "quant_min": -128, "quant_max": 127}
PER_TENSOR, PER_CHANNEL = {"qscheme": torch.per_tensor_symmetric}, {"qscheme": torch.per_channel_symmetric}
FIXED = {
    "moving": partial(FakeQuantize, TENSOR),
    "moving-symmetric": partial(FakeQuantize, TENSOR, **S8, **PER_TENSOR),
    "moving-symmetric-unsigned": partial(FakeQuantize, TENSOR, quant_min=0, quant_max=254, **PER_TENSOR),
    "extremes-reduced": partial(FakeQuantize, MinMaxObserver, reduce_range=True),
    "histogram": partial(FakeQuantize, HistogramObserver),
    "channels": partial(FakeQuantize, PerChannelMinMaxObserver, **S8, **PER_CHANNEL),
    "channels-4bit": partial(FakeQuantize, PerChannelMinMaxObserver, -8, 7, dtype=torch.qint8, **PER_CHANNEL),
    "channels-affine-axis1": partial(FakeQuantize, CHANNEL, qscheme=torch.per_channel_affine, ch_axis=1),
    "fixed": partial(FixedQParamsFakeQuantize, default_fixed_qparams_range_0to1_observer),
    "fused": FusedMovingAvgObsFakeQuantize,
    "fused-symmetric": partial(FusedMovingAvgObsFakeQuantize, **S8, **PER_TENSOR),
    "fused-channels": partial(FusedMovingAvgObsFakeQuantize, CHANNEL, **S8, **PER_CHANNEL),
    "fused-channels-affine": partial(FusedMovingAvgObsFakeQuantize, CHANNEL, qscheme=torch.per_channel_affine),
    "fused-axis1": partial(FusedMovingAvgObsFakeQuantize, CHANNEL, qscheme=torch.per_channel_affine, ch_axis=1),
}
LEARNED = {
    "learned": partial(_LearnableFakeQuantize, TENSOR, -8, 7, dtype=torch.qint8, **PER_TENSOR),
    "learned-affine": partial(_LearnableFakeQuantize, TENSOR, 0, 15),
    "learned-channels": partial(_LearnableFakeQuantize, CHANNEL, -8, 7, dtype=torch.qint8, channel_len=48,
                                use_grad_scaling=True, **PER_CHANNEL),
    "learned-channels-affine": partial(_LearnableFakeQuantize, CHANNEL, 0, 15, channel_len=48,
                                       qscheme=torch.per_channel_affine),
}
SHAPES = {"small": (48, 48), "matrix": (48, 1200), "image": (48, 48, 5, 6)}


def twins(make):
    """Return a module and an accelerated copy of it."""
    original = make()
    ours = copy.deepcopy(original)
    assert len(accelerate(ours).replaced) == 1
    return original, ours


def assert_same(one, other):
    assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


def assert_same_state(original, ours):
    states = original.state_dict(), ours.state_dict()
    assert list(states[0]) == list(states[1])
    for one, other in zip(states[0].values(), states[1].values(), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
def test_same_bits(make, shape, dtype):
    original, ours = twins(make)
    for call in range(5):
        if call == 3:
            original.disable_observer(), ours.disable_observer()
        if call == 4:
            original.disable_fake_quant(), ours.disable_fake_quant()
        x = (torch.randn(shape) * (1 + call)).to(dtype).requires_grad_()
        try:
            expected = original(x)
        except RuntimeError as error:  # torch's fused operator takes float32 alone
            with pytest.raises(RuntimeError, match=str(error)[:20]):
                ours(x)
            return
        out, grad = ours(x), torch.randn(shape).to(dtype)
        assert_same(expected, out)
        assert_same(torch.autograd.grad(expected, x, grad)[0], torch.autograd.grad(out, x, grad)[0])
        assert_same_state(original, ours)


def sum_bounds(module, x, x_hat, grad, grad_x):
    """Return how far from each other float32 sums of the terms of the gradients of scale and zero point can be.

    Terms are rounded three times, and each level of a sum in pairs once: 32 roundings of the sum of magnitudes.
    """
    scale, zero = module.scale.detach(), module.zero_point.detach()
    per_channel = scale.numel() > 1
    if per_channel:
        shape = [-1 if axis == module.ch_axis else 1 for axis in range(x.dim())]
        scale, zero = scale.view(shape), zero.view(shape)
    inside = (grad_x == grad) & (grad != 0)
    factor = (x.numel() * module.quant_max) ** -0.5 if module.use_grad_scaling else 1.0
    terms = (grad * torch.where(inside, (x_hat - x).abs() / scale + 1, x_hat.abs() / scale + 1),
             torch.where(inside, 0.0, grad * scale))
    axes = [axis for axis in range(x.dim()) if not per_channel or axis != module.ch_axis]
    return [32 * 2.0**-24 * factor * term.detach().abs().sum(axes).flatten() + 1e-12 for term in terms]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("make", LEARNED.values(), ids=LEARNED)
def test_learned(make, shape):
    """Also x and zero points for which torch's forward and backward round to different codes."""
    original, ours = twins(make)
    for call in range(4):
        x = torch.randn(shape).requires_grad_()
        if call == 2:
            for module in (original, ours):
                module.enable_param_learning()
                module.scale.data.fill_(0.0625)
                module.zero_point.data.fill_(0 if "symmetric" in str(module.qscheme) else 2.5)
            x = (torch.round(torch.randn(shape) * 64) / 32).requires_grad_()
        grad, expected, out = torch.randn(shape), original(x), ours(x)
        assert_same(expected, out)
        theirs = torch.autograd.grad(expected, [x, original.scale, original.zero_point], grad)
        mine = torch.autograd.grad(out, [x, ours.scale, ours.zero_point], grad)
        assert_same(theirs[0], mine[0])
        bounds = sum_bounds(original, x, expected, grad, theirs[0])
        for one, other, bound in zip(theirs[1:], mine[1:], bounds, strict=True):
            assert one.shape == other.shape and ((one - other).abs() <= bound).all()
        assert_same_state(original, ours)
    module = ours.toggle_fake_quant(False)
    assert module(x) is x


def test_kernels_are_called(monkeypatch):
    calls = []
    real = mbq_kernels.fake_quantize_affine
    monkeypatch.setattr("mbq_train.drop_in.torch_ao.arithmetic.fake_quantize_affine",
                        lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    for name in (name for name in FIXED if name != "fused-axis1"):  # which torch refuses
        twins(FIXED[name])[1](torch.randn(SHAPES["matrix"]))
    assert len(calls) == len(FIXED) - 1
    twins(FakeQuantize)[1](torch.randn(SHAPES["small"]))
    assert len(calls) == len(FIXED) - 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38], ids=str)
@pytest.mark.parametrize("make", [FIXED["moving"], FIXED["moving-symmetric"], FIXED["extremes-reduced"],
                                  FIXED["channels"]], ids=["moving", "symmetric", "extremes", "channels"])
def test_observer_of_what_is_not_finite(make, value):
    original, ours = twins(make)
    x = torch.randn(SHAPES["matrix"])
    x[3, 5], x[4, 6] = value, -value
    for module in (original, ours):
        module.disable_fake_quant()
        module(x), module(x)
    for one, other in zip(original.state_dict().values(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_values_that_ours_refuses_go_to_torch():
    original, ours = twins(FIXED["moving"])
    x = torch.randn(SHAPES["matrix"])
    for module in (original, ours):
        module.disable_observer()
        module.zero_point.fill_(1000)
    assert_same(original(x), ours(x))
    for module in (original, ours):
        module.scale.fill_(float("nan"))
    assert original(x).isnan().all() and ours(x).isnan().all()


def test_two_forwards_before_the_backward():
    """The first must not notice that the observer has changed the scale since."""
    original, ours = twins(FIXED["moving"])
    xs = [torch.randn(SHAPES["matrix"]).requires_grad_() for _ in range(2)]
    for module in (original, ours):
        sum((module(x) * module(x * 2)).sum() for x in xs).backward()
        module.grads = [x.grad for x in xs]
        for x in xs:
            x.grad = None
    for one, other in zip(original.grads, ours.grads, strict=True):
        assert_same(one, other)


def test_hooks_of_the_observer_see_the_tensor():
    module = twins(FIXED["channels"])[1]
    seen = []
    module.activation_post_process.register_forward_hook(lambda observer, args, output: seen.append(args[0].shape))
    module(torch.randn(SHAPES["matrix"]))
    assert seen == [SHAPES["matrix"]]


def test_loads_and_copies():
    original, ours = twins(FIXED["channels"])
    x = torch.randn(SHAPES["matrix"])
    original(x)
    fresh = FIXED["channels"]()
    accelerate(fresh)
    fresh.load_state_dict(original.state_dict())
    twin = copy.deepcopy(fresh)
    assert is_replaced(twin) and isinstance(twin, FakeQuantize) and restore(twin) == 1 and not is_replaced(twin)
    assert_same(original(x), fresh(x))
    assert_same(original(x), (twin(x), twin(x))[1])


class Rounding(FakeQuantize):
    def forward(self, x):
        return x.round()


@pytest.mark.parametrize("module, reason", [
    (FakeQuantize(PerChannelMinMaxObserver, qscheme=torch.per_channel_affine_float_qparams), "zero point"),
    (FakeQuantize(PlaceholderObserver, dtype=torch.float16), "float16"),
    (FakeQuantize(dtype=torch.qint32, quant_min=-(2**31), quant_max=2**31 - 1), "bits"),
    (Rounding(), "forward that is not known"),
], ids=["float-zero-point", "float16", "32-bit", "own-forward"])
def test_left_alone(module, reason):
    with pytest.warns(RuntimeWarning, match="got model"):
        report = accelerate(module)
    assert not report.replaced and reason in report.left[0].why


@pytest.mark.parametrize("name", ["FakeQuantize", "FusedMovingAvgObsFakeQuantize"])
def test_copies_in_torchao(name):
    pt2e = pytest.importorskip("torchao.quantization.pt2e.fake_quantize")
    original, ours = twins(getattr(pt2e, name))
    x = torch.randn(SHAPES["matrix"])
    for _ in range(2):
        assert_same(original(x), ours(x))
    assert_same_state(original, ours)
