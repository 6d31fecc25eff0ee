"""The quantized layers and BatchNorm per bit-width."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mbq_train import convert, set_bits
from networks import small_network
from torch import nn


@pytest.fixture
def images():
    return torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [
    {"stride": 2, "padding": 1}, {"groups": 2}, {"groups": 4, "bias": False}, {"dilation": 2, "padding": "same"},
    {"padding": (1, 2), "padding_mode": "circular"}, {"padding": 1, "padding_mode": "reflect"},
], ids=str)
def test_conv_options(options):
    conv = nn.Conv2d(4, 8, 3, **options)
    model = convert(nn.Sequential(conv), keep_float=(), signed_inputs=("0",))
    x = torch.randn(2, 4, 9, 9)
    out = model(x)
    layer = model[0]
    expected = copy.deepcopy(conv)
    expected.weight.data = layer.weight_quantizer(layer.weight).detach()
    assert layer.weight is conv.weight and layer.bias is conv.bias
    assert torch.equal(out, expected(layer.input_quantizer(x)))
    set_bits(model, 32)
    assert torch.equal(model(x), conv(x))


def test_linear_quantizes_weight_and_input():
    linear = nn.Linear(5, 3)
    layer = convert(nn.Sequential(linear), keep_float=())[0]
    x = torch.rand(4, 5)
    out = layer(x)
    assert torch.equal(out, F.linear(layer.input_quantizer(x), layer.weight_quantizer(linear.weight), linear.bias))
    assert not torch.equal(layer.input_quantizer(x), x)


def test_signed_inputs_keep_negative_values():
    model = convert(nn.Sequential(nn.Linear(5, 3)), keep_float=(), signed_inputs=("0",))
    assert model[0].input_quantizer(torch.tensor([-1.0, 1.0])).min() < -0.5


def test_batch_norm_per_bit_keeps_separate_statistics(images):
    model = convert(small_network())
    for bits in (8, 2):
        set_bits(model, bits)
        model(images).square().mean().backward()
    by_bits = model[4].by_bits
    untouched = torch.zeros(6)
    assert torch.equal(by_bits["4"].running_mean, untouched) and torch.equal(by_bits["32"].running_mean, untouched)
    assert not torch.equal(by_bits["8"].running_mean, untouched)
    assert not torch.equal(by_bits["8"].running_mean, by_bits["2"].running_mean)
    assert by_bits["4"].weight.grad is None and by_bits["2"].weight.grad is not None


def test_batch_norm_per_bit_starts_from_the_float_one(images):
    model = small_network()
    model(images)
    mean = model[4].running_mean.clone()
    convert(model)
    assert all(torch.equal(model[4].by_bits[b].running_mean, mean) for b in ("32", "8", "4", "2"))


def test_shared_batch_norm_is_left_alone():
    model = small_network()
    batch_norm = model[1]
    assert convert(model, batch_norm="shared")[1] is batch_norm


def test_autocast_computes_in_bfloat16_with_float32_gradients(images):
    model = convert(small_network())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images)
    out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    layer = model[3]
    grads = [layer.weight.grad, layer.weight_quantizer.scales["8"].grad, layer.input_quantizer.scales["8"].grad]
    assert all(grad.dtype == torch.float32 and grad.abs().max() > 0 for grad in grads)
