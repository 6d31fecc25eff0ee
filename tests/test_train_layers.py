"""The quantized layers and BatchNorm per bit-width."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import small_network
from torch import nn

from mbq_train import Float, Learned, convert, set_bits
from mbq_train.quantize.quantizer import quantizers


@pytest.fixture
def images():
    return torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [
    {"stride": 2, "padding": 1}, {"groups": 2}, {"groups": 4, "bias": False}, {"dilation": 2, "padding": "same"},
    {"padding": 1, "padding_mode": "circular"}, {"padding": 2, "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "replicate"},
], ids=str)
@pytest.mark.parametrize("kind, shape", [(nn.Conv1d, (2, 4, 9)), (nn.Conv2d, (2, 4, 9, 7))], ids=["1d", "2d"])
def test_conv_options(kind, shape, options):
    conv = kind(4, 8, 3, **options)
    expected = copy.deepcopy(conv)
    model = convert(nn.Sequential(conv), keep_float=(), rules=[("0", {"activations": Learned(signed=True)})])
    x = torch.randn(shape)
    out = model(x)
    layer = model[0]
    assert layer.weight is conv.weight and layer.bias is conv.bias
    expected_float = expected(x)
    expected.weight.data = layer.weight_quantizer(layer.weight).detach()
    assert torch.equal(out, expected(layer.input_quantizer(x))) and not torch.equal(out, expected_float)
    set_bits(model, 32)
    assert torch.equal(model(x), expected_float)


def test_linear_quantizes_weight_and_input():
    linear = nn.Linear(5, 3)
    layer = convert(nn.Sequential(linear), keep_float=())[0]
    x = torch.rand(4, 5)
    out = layer(x)
    assert torch.equal(out, F.linear(layer.input_quantizer(x), layer.weight_quantizer(linear.weight), linear.bias))
    assert not torch.equal(layer.input_quantizer(x), x)


def test_a_rule_for_signed_inputs_keeps_negative_values():
    model = convert(nn.Sequential(nn.Linear(5, 3)), keep_float=(), rules=[("0", {"activations": Learned(signed=True)})])
    assert model[0].input_quantizer(torch.tensor([-1.0, 1.0])).min() < -0.5


def test_weights_only():
    linear = nn.Linear(5, 3)
    model = convert(nn.Sequential(linear), keep_float=(), rules=[("0", {"activations": Float()})])
    x = torch.randn(4, 5)
    assert torch.equal(model(x), F.linear(x, model[0].weight_quantizer(linear.weight), linear.bias))
    assert len(quantizers(model)) == 1


def test_what_a_layer_carries_comes_along():
    linear = nn.Linear(5, 3).eval()
    linear.note = {"kept": True}
    linear.register_buffer("count", torch.tensor(7), persistent=False)
    linear.bias.requires_grad = False
    layer = convert(nn.Sequential(linear), keep_float=())[0]
    assert layer.note == {"kept": True} and layer.count == 7 and "count" not in layer.state_dict()
    assert not layer.bias.requires_grad and not layer.training and not layer.weight_quantizer.training
    assert "input_quantizer" not in dict(linear.named_children())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_converted_network_can_change_its_dtype(images, dtype):
    model = convert(small_network(), batch_norm="shared")
    for bits in (8, 4, 2):
        set_bits(model, bits)
        model(images)
    twin = copy.deepcopy(model).to(dtype)
    assert all(p.dtype == (torch.promote_types(dtype, torch.float32) if "_quantizer." in name else dtype)
               for name, p in twin.named_parameters())
    for bits, tolerance in ((8, 0.1), (32, 0.02)):
        set_bits(model.eval(), bits)
        set_bits(twin.eval(), bits)
        out = twin(images.to(dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), model(images), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_converted_network_starts_and_trains_in_another_dtype(images, dtype):
    model = convert(small_network(), batch_norm="shared").to(dtype)
    for bits in (8, 4, 2):
        set_bits(model, bits)
        model(images.to(dtype)).square().mean().backward()
        grad = model[3].weight_quantizer.scales[str(bits)].grad
        assert model[3].weight.grad.dtype == dtype and grad.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.isfinite(grad).all() and grad.abs().max() > 0


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


def test_what_is_frozen_in_a_batch_norm_is_frozen_at_every_bit_width():
    model = small_network()
    model[1].weight.requires_grad = False
    batch_norms = convert(model)[1].by_bits.values()
    assert [(b.weight.requires_grad, b.bias.requires_grad) for b in batch_norms] == [(False, True)] * 4


def test_sync_batch_norm_per_bit(images):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small_network())
    convert(model)
    assert all(type(norm) is nn.SyncBatchNorm for norm in model[1].by_bits.values())
    set_bits(model, 2)
    model(images)
    changed = [bits for bits, norm in model[4].by_bits.items() if norm.running_mean.abs().max() > 0]
    assert changed == ["2"]


def test_batch_norm_state_makes_the_round_trip(images):
    model = convert(small_network())
    for bits in (8, 2):
        set_bits(model, bits)
        model(images)
    other = convert(small_network())
    other.load_state_dict(model.state_dict())
    assert len(model[4].state_dict()) == 4 * 5
    assert all(torch.equal(a, b) for a, b in zip(model[4].buffers(), other[4].buffers(), strict=True))
    assert not torch.equal(other[4].by_bits["8"].running_mean, other[4].by_bits["4"].running_mean)


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
