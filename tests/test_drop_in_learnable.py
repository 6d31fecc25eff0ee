"""accelerate on the fake-quantizers of torch.ao and torchao that learn scale and zero point."""

from functools import partial

import pytest
import torch
from fake_quantizers import CHANNEL, PER_CHANNEL, PER_TENSOR, SHAPES, TENSOR, assert_same, assert_same_state, twins
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

LEARNED = {
    "learned": partial(_LearnableFakeQuantize, TENSOR, -8, 7, dtype=torch.qint8, **PER_TENSOR),
    "learned-affine": partial(_LearnableFakeQuantize, TENSOR, 0, 15),
    "learned-channels": partial(_LearnableFakeQuantize, CHANNEL, -8, 7, dtype=torch.qint8, channel_len=48,
                                use_grad_scaling=True, **PER_CHANNEL),
    "learned-channels-affine": partial(_LearnableFakeQuantize, CHANNEL, 0, 15, channel_len=48,
                                       qscheme=torch.per_channel_affine),
}


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


@pytest.mark.parametrize("name", ["learned", "learned-affine", "learned-channels"])
def test_scales_that_ours_refuses_go_to_torch(name):
    original, ours = twins(LEARNED[name])
    x = torch.randn(SHAPES["matrix"])
    for module in (original, ours):
        module.enable_param_learning()
        module.scale.data.fill_(float("inf"))
    expected, out = original(x), ours(x)
    assert expected.isnan().any() and torch.equal(expected.isnan(), out.isnan())


@pytest.mark.parametrize("options", [PER_TENSOR, {}, PER_CHANNEL, {"qscheme": torch.per_channel_affine}],
                         ids=["tensor", "affine", "channels", "channels-affine"])
def test_learnable_of_torchao(options):
    """Which makes its parameters on the first call."""
    learnable = pytest.importorskip("torchao.quantization.pt2e.learnable_fake_quantize").LearnableFakeQuantize
    from torchao.quantization.pt2e import observer
    kind = observer.MovingAveragePerChannelMinMaxObserver if "channel" in str(options) else observer.MinMaxObserver
    limits = {"quant_min": -8, "quant_max": 7, "dtype": torch.int8}
    original, ours = twins(partial(learnable, kind, **limits, **options))
    for call in range(4):
        if call == 2:
            original.enable_range_learning(), ours.enable_range_learning()
        x, grad = torch.randn(SHAPES["matrix"]).requires_grad_(), torch.randn(SHAPES["matrix"])
        expected, out = original(x), ours(x)
        assert_same(expected, out)
        theirs = torch.autograd.grad(expected, [x, *original.parameters()][:1 + 2 * (call > 1)], grad)
        mine = torch.autograd.grad(out, [x, *ours.parameters()][:1 + 2 * (call > 1)], grad)
        assert_same(theirs[0], mine[0])
        bounds = sum_bounds(original, x, expected, grad, theirs[0])
        for one, other, bound in zip(theirs[1:], mine[1:], bounds, strict=False):
            assert one.shape == other.shape and ((one - other).abs() <= bound).all()
        assert_same_state(original, ours)
