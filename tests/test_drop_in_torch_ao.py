"""accelerate on torch.ao's fake-quantizers: outputs, gradients, observer and buffers as the original's, bit for bit."""

import copy

import pytest
import torch
from fake_quantizers import FIXED, SHAPES, assert_same, assert_same_state, twins
from torch.ao.quantization import FakeQuantize, PerChannelMinMaxObserver, PlaceholderObserver

import mbq_kernels
from mbq_train import accelerate, restore
from mbq_train.drop_in.replacement import is_replaced
from mbq_train.drop_in.torch_ao.per_tensor import unclipped


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


def test_affine_of_torchao_is_named():
    pt2e = pytest.importorskip("torchao.quantization.pt2e.fake_quantize")
    from torchao.quantization import MappingType, PerTensor
    module = pt2e.AffineFakeQuantize(mapping_type=MappingType.ASYMMETRIC, target_dtype=torch.uint8,
                                     granularity=PerTensor())
    with pytest.warns(RuntimeWarning, match="a forward that is not known"):
        accelerate(module)


@pytest.mark.parametrize("name", ["moving", "channels-affine-axis1", "fused", "fused-channels"])
def test_memory_order_and_autocast(name):
    original, ours = twins(FIXED[name])
    x = torch.randn(SHAPES["image"]).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected, out = original(x), ours(x)
    assert_same(expected, out)
    with torch.no_grad():
        assert_same(original(x[:, :, 1:]), ours(x[:, :, 1:]))
    assert_same_state(original, ours)


def test_second_derivative():
    """One of a constant scale for all of x is torch's; kernels otherwise refuse."""
    original, ours = twins(FIXED["moving"])
    x = torch.randn(SHAPES["matrix"]).requires_grad_()
    seconds = []
    for module in (original, ours):
        first, = torch.autograd.grad(module(x * x).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert_same(*seconds)
    first, = torch.autograd.grad(twins(FIXED["channels"])[1](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        first.sum().backward()


@pytest.mark.parametrize("zero_point", [-8, 0, 3, 7])
def test_what_is_not_clipped_is_an_interval(zero_point):
    """To the last bit: the floats around both ends, of steps of all sizes."""
    for scale in torch.cat([torch.logspace(-7, 3, 50), 2.0 ** torch.arange(-20, 8)]):
        ends = torch.tensor(unclipped(scale.item(), zero_point, -8, 7))
        x = torch.stack([ends] * 3 + [torch.nextafter(ends, torch.tensor(far)) for far in (-1e38, 1e38)])
        x = torch.cat([x, torch.nextafter(x, 2 * x)]).requires_grad_()
        x_hat = torch.fake_quantize_per_tensor_affine(x, scale.view(1), torch.tensor([zero_point]).int(), -8, 7)
        mask, = torch.autograd.grad(x_hat.sum(), x)
        assert torch.equal(mask, ((x > ends[0]) & (x < ends[1])).float())
