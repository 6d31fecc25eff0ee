"""Learned(group_size=): a scale for every group of weights that lie side by side in an output channel."""


import onnx
import oracles
import pytest
import torch
from networks import encoder_network, one_thread, small_network  # noqa: F401
from onnx_files import run
from torch import nn

import mbq_kernels as mbq
from mbq_lab import Options
from mbq_train import (
    BitState,
    Float,
    GroupWeightQuantizer,
    Learned,
    WeightQuantizer,
    convert,
    export_onnx,
    perturbations,
    scales,
    set_bits,
)

BITS = (8, 4, 2, 1)
SHAPES = {"linear": (5, 12), "conv1d": (4, 4, 3), "conv2d": (3, 4, 3, 3), "one group": (5, 4)}


def quantizer_of(shape, dtype=torch.float32, bits=BITS):
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=dtype) * torch.rand(shape[0], *[1] * (len(shape) - 1)).to(dtype)
    weight[0].view(-1)[:4] = 0  # a group of zeros
    state = BitState(bits)
    return GroupWeightQuantizer(state, weight, group_size=4), weight.requires_grad_(), state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_values_and_gradients_are_those_of_a_slow_formula(kind, dtype):
    quantizer, weight, state = quantizer_of(SHAPES[kind], dtype)
    grad = torch.randn(weight.shape).to(dtype)
    rows = weight.detach().reshape(-1, 4)
    for bits in BITS:
        state.select(bits)
        actual = quantizer(weight)
        scale = quantizer.scale(bits)
        assert scale.shape == (weight.shape[0], rows.shape[0] // weight.shape[0]) and scale.dtype == torch.float32
        hi = oracles.bounds(bits, True)[1]
        size = rows.float().abs().mean(dim=1)
        first = torch.where(size == 0, size.mean(), size) * 2 / hi**0.5
        torch.testing.assert_close(scale.flatten(), first, rtol=1e-6, atol=0)
        oracles.assert_same(actual, oracles.fake_quantize(rows, scale.view(-1), bits=bits, axis=0).view(weight.shape))
        grads = torch.autograd.grad(actual, [weight, quantizer.scales[str(bits)]], grad)
        wanted, of_scale, _ = oracles.gradients(grad.reshape(-1, 4), rows, scale.view(-1), bits=bits, axis=0)
        oracles.assert_same(grads[0].double(), wanted.view(weight.shape))
        of_units = (of_scale.view(scale.shape) / quantizer.scale_units[str(bits)]).double()
        torch.testing.assert_close(grads[1].double(), of_units, rtol=1e-4, atol=1e-5 * float(of_units.abs().max()))


def test_groups_are_channels_of_a_narrower_weight():
    """Bit for bit: first values, values, gradients, codes."""
    quantizer, weight, state = quantizer_of((6, 32))
    rows = weight.detach().view(-1, 4).clone().requires_grad_()
    plain = WeightQuantizer(state, rows)
    for bits in BITS:
        state.select(bits)
        plain(rows), quantizer(weight)
        for q in (plain, quantizer):
            q.scales[str(bits)].data *= 0.6
        pairs = [(quantizer(weight), plain(rows)), (quantizer.scale(bits), plain.scale(bits)),
                 (quantizer.codes(weight, bits).codes, plain.codes(rows, bits).codes)]
        (ours, theirs), grad = pairs[0], torch.randn(48, 4)
        pairs += zip(torch.autograd.grad(ours, [weight, quantizer.scales[str(bits)]], grad.view_as(ours)),
                     torch.autograd.grad(theirs, [rows, plain.scales[str(bits)]], grad), strict=True)
        for one, other in pairs:
            assert torch.equal(one.flatten(), other.flatten()) and one.any()


def test_a_layer_computes_with_them_and_prints_them():
    layer = nn.Sequential(nn.Linear(24, 6, bias=False))
    x, weight = torch.randn(5, 24), layer[0].weight
    convert(layer, (4,), weights=Learned(group_size=8), activations=Float(), keep_float=(), example=x)
    assert "groups of 8" in repr(layer) and tuple(scales(layer)[0].shape) == (6, 3)
    w_hat = mbq.fake_quantize(weight, layer[0].weight_quantizer.scale(4), bits=4, group_size=8)
    assert torch.equal(layer(x), x @ w_hat.t())
    assert perturbations(layer)["0"] == pytest.approx((w_hat - weight).square().sum().item())


def test_a_transposed_layer_and_attention():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model, x = nn.Sequential(conv1d(6, 16)), torch.randn(3, 16)
    linear = nn.Sequential(nn.Linear(16, 6))
    linear[0].weight.data, linear[0].bias.data = model[0].weight.detach().t().contiguous(), model[0].bias.detach()
    for each in (model, linear):
        convert(each, (4,), weights=Learned(group_size=4), keep_float=(), example=x)
    assert torch.equal(model(x), linear(x))
    encoder = convert(encoder_network(), (4,), weights=Learned(group_size=4), example=torch.randn(2, 5, 8))
    assert isinstance(encoder[1].layers[0].self_attn.q_proj.weight_quantizer, GroupWeightQuantizer)


@pytest.mark.parametrize("bits", [8, 1])
def test_onnx_files_hold_codes_and_scales_of_groups(tmp_path, bits):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 64), nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 6, 2)), torch.randn(3, 8)
    convert(model, (8, 1), weights=Learned(group_size=8), activations=Float(), keep_float=(), example=x)
    export_onnx(model, tmp_path / "file", bits=bits, example=x)
    proto = onnx.load(tmp_path / "file")
    proto.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in proto.graph.node
                              if node.op_type == "Mul")
    set_bits(model.eval(), bits)
    for optimised in (True, False):
        got, *weights = map(torch.from_numpy, run(proto.SerializeToString(), x, optimised=optimised))
        torch.testing.assert_close(got, model(x), rtol=0, atol=1e-5)
        for layer, weight in zip((model[0], model[2]), weights, strict=True):
            assert torch.equal(weight.view(layer.weight.shape), layer.quantized_weight())
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert list(stored["2.weight_quantizer.codes"].dims) == [6, 2, 8]
    assert list(stored["2.weight_quantizer.scale"].dims) == [6, 2, 1]
    packed = stored["2.weight_quantizer.codes"].data_type == onnx.TensorProto.INT4
    assert packed == (bits <= 4)


@pytest.mark.parametrize("error, message, options", [
    (TypeError, "group_size must be an integer or None, got 8.0", {"group_size": 8.0}),
    (TypeError, "group_size must be an integer or None, got True", {"group_size": True}),
    (ValueError, "group_size must be at least 2, got 1", {"group_size": 1}),
    (ValueError, "correction must be False with group_size: the corrected kernel has scales per channel alone, got "
                 "True", {"group_size": 8, "correction": True})], ids=["float", "bool", "one", "correction"])
def test_options_that_cannot_be(error, message, options):
    with pytest.raises(error) as raised:
        Learned(**options)
    assert str(raised.value) == f"Learned: {message}"


def test_a_layer_whose_channels_have_no_such_groups_is_named():
    model, images = small_network(), torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"^3: group_size must divide the 36 weights of an output channel \(weight of "
                                         r"shape \(6, 4, 3, 3\)\), got 8; a rule of convert"):
        convert(model, (4,), weights=Learned(group_size=8))
    assert type(model[3]) is nn.Conv2d
    rules = [("3", {"weights": Learned(group_size=9)})]
    convert(model, (4,), weights=Learned(group_size=8), example=images, rules=rules)
    assert scales(model)[1].shape == (6, 4)
    with pytest.raises(ValueError, match="activations must leave group_size of Learned alone"):
        convert(small_network(), (4,), activations=Learned(group_size=8))


def test_the_command_has_the_option():
    assert Options(group_size=32).weights == Learned(group_size=32) and Options().weights == Learned()
    assert Options.from_json(Options(group_size=32).to_json()).weights == Learned(group_size=32)
    with pytest.raises(ValueError, match="options: group_size must be left alone unless quantizer is learned, got 32"):
        Options(group_size=32, quantizer="double-rounding")
