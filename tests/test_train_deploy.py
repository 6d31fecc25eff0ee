"""deploy: a network of stored codes computes what the trained one did, at every bit-width, from a byte a weight."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trained_networks import TRAINED, images, trained

import mbq_train
from mbq_train import Float, convert, set_bits
from mbq_train.deployment import SwitchedConv1d, SwitchedConv2d, SwitchedLinear, Workspace, deploy
from mbq_train.deployment.switched_layers import MANY_ROWS

LAYOUTS, ROUNDINGS = ("codes", "planes"), ("half_even", "half_up")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_computes_what_was_trained(layout, rounding):
    model, x = trained(rounding=rounding), images()
    mbq_train.initialise(model, x)
    model.eval()
    stored = deploy(copy.deepcopy(model), layout=layout)
    for bits in TRAINED:
        set_bits(model, bits)
        set_bits(stored, bits)
        torch.testing.assert_close(stored(x), model(x), rtol=1e-4, atol=1e-5)
        for name, layer in stored.named_modules():
            if isinstance(layer, (SwitchedLinear, SwitchedConv1d, SwitchedConv2d)):
                source = model.get_submodule(name)
                weight = layer.weight_at(bits, torch.empty(0))
                assert torch.equal(weight, source.weight_quantizer(source.weight)), (name, bits)


def test_holds_a_byte_a_weight():
    for layout in LAYOUTS:
        model = trained()
        weights = sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
        channels = sum(p.shape[0] for name, p in model.named_parameters() if name.endswith("weight"))
        biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias"))
        mbq_train.initialise(model, images())
        stored = deploy(model, layout=layout)
        assert model is stored and not [p for p in stored.parameters() if p.dim() > 0 and p.numel() > 1]
        rest = sum(t.numel() * t.element_size() for q in stored.modules() if hasattr(q, "is_signed")
                   for t in (*q.parameters(), *q.buffers()))
        rest += sum(layer.layer_bits.nbytes for layer in stored.modules() if hasattr(layer, "weight_shape"))
        held = sum(t.numel() * t.element_size() for t in (*stored.parameters(), *stored.buffers()))
        padding = sum(-torch.Size(layer.weight_shape[1:]).numel() % 8 * layer.weight_shape[0] for layer in
                      stored.modules() if hasattr(layer, "weight_shape") and layout == "planes")
        assert held == weights + padding + 4 * (channels + biases) + rest
        file = io.BytesIO()
        torch.save(stored.state_dict(), file)
        assert held <= file.tell() < held + 20000


@pytest.mark.parametrize("bits", [6, 4, 2])
def test_planes_are_read_partially_with_half_up(bits):
    """Of 8 planes of every layer bits + 1 are read: others may hold anything, the last of them may not."""
    model, x = trained(rounding="half_up"), images()
    mbq_train.initialise(model, x)
    stored = deploy(model.eval(), layout="planes")
    set_bits(stored, bits)
    layers = [layer for layer in stored.modules() if hasattr(layer, "store")]
    want, weights = stored(x), [layer.weight_at(bits, torch.empty(0)).clone() for layer in layers]
    for layer in layers:
        layer.store[bits + 1:] = 0xA5
    assert torch.equal(stored(x), want) and len(layers) == 5
    for layer, weight in zip(layers, weights, strict=True):
        layer.store[bits] ^= 0xFF
        assert not torch.equal(layer.weight_at(bits, torch.empty(0)), weight)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bit_widths_that_were_not_trained(layout):
    model, x = trained(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)), bits=(8, 4)), torch.randn(6, 20)
    mbq_train.initialise(model, x)
    stored = deploy(copy.deepcopy(model), layout=layout)
    with pytest.raises(ValueError, match="bits must be one of 32, 8, 4, got 3"):
        set_bits(stored, 3)
    stored = mbq_train.add_bits(stored, (3,), [x])
    set_bits(stored, 3)
    code = torch.round(torch.round((model[0].weight / model[0].weight_quantizer.scale(8).view(-1, 1))
                                   .clamp(-128, 127)) / 32).clamp(max=3)
    want = code * model[0].weight_quantizer.scale(8).view(-1, 1) * 32
    assert torch.equal(stored[0].weight_at(3, x), want)
    expected = F.linear(stored[0].input_quantizer(x), want, model[0].bias)
    torch.testing.assert_close(stored[0](x), expected)


def test_weights_alone_switch_to_every_bit_width():
    """Where nothing else depends on the bit-width, all from 2 to the highest can be chosen."""
    model = trained(nn.Sequential(nn.Linear(20, 30)), bits=(8,), rules=[("*", {"activations": Float()})])
    stored, x = deploy(copy.deepcopy(model)), torch.randn(3, 20)
    for bits in range(2, 9):
        set_bits(stored, bits)
        model[0].weight_quantizer.bit_state.bits = bits
        torch.testing.assert_close(stored(x), F.linear(x, model[0].weight_quantizer(model[0].weight), model[0].bias))


def test_many_rows_go_through_a_dequantized_weight(monkeypatch):
    model = trained(nn.Sequential(nn.Linear(20, 30)), rules=[("*", {"activations": Float()})])
    stored, x = deploy(copy.deepcopy(model)), torch.randn(3, MANY_ROWS // 2, 20)
    calls = []
    monkeypatch.setattr("mbq_train.deployment.switched_layers.switched_linear",
                        lambda x, *rest, **named: calls.append(len(x)) or x.new_zeros(len(x), 30))
    assert torch.equal(stored(x), model(x)) and not calls
    stored(x[0])
    assert calls == [MANY_ROWS // 2]


def test_float_weights_are_gone():
    stored = deploy(trained(nn.Sequential(nn.Linear(4, 4)), rules=[("*", {"activations": Float()})]))
    set_bits(stored, 32)
    with pytest.raises(ValueError, match="bits must be between 2 and 8, got 32: a deployed network keeps no other"):
        stored(torch.randn(1, 4))


def test_attention():
    attention, x = nn.MultiheadAttention(12, 3, batch_first=True), torch.randn(2, 5, 12)
    model = trained(nn.Sequential(attention), rules=[("*", {"activations": Float()})]).eval()
    stored = deploy(copy.deepcopy(model))
    set_bits(model, 4)
    set_bits(stored, 4)
    assert len([m for m in stored.modules() if isinstance(m, SwitchedLinear)]) == 4
    torch.testing.assert_close(stored[0](x, x, x)[0], model[0](x, x, x)[0])


def test_shared_layers_stay_shared():
    linear = nn.Linear(6, 6)
    model = trained(nn.Sequential(linear, nn.ReLU(), nn.ModuleDict({"again": linear})))
    stored = deploy(model)
    assert stored[0] is stored[2]["again"] and isinstance(stored[0], SwitchedLinear)


def test_a_workspace_serves_all_layers_one_at_a_time():
    model = trained()
    mbq_train.initialise(model, images())
    stored = deploy(model.eval())
    with torch.no_grad():
        stored(images())
    spaces = {layer.workspace for layer in stored.modules() if hasattr(layer, "workspace")}
    largest = max(torch.Size(layer.weight_shape).numel() for layer in stored.modules()
                  if isinstance(layer, (SwitchedConv1d, SwitchedConv2d)))
    assert len(spaces) == 1 and spaces.pop().memory.numel() == largest


def test_workspace_keeps_what_autograd_needs():
    space, like = Workspace(), torch.ones(2, requires_grad=True)
    assert space.take((3, 2), like).data_ptr() != space.take((3, 2), like).data_ptr() and space.memory is None
    with torch.no_grad():
        first = space.take((3, 2), like)
        assert space.take((2, 2), like).data_ptr() == first.data_ptr()
        assert space.take((2, 2), like.double()).dtype == torch.float64


def test_gradient_of_the_input():
    model = trained()
    mbq_train.initialise(model, images())
    model.eval()
    stored, x = deploy(copy.deepcopy(model)), images().requires_grad_()
    want, = torch.autograd.grad(model(x).square().sum(), x)
    got, = torch.autograd.grad(stored(x).square().sum(), x)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_half_keeps_the_scale():
    stored = deploy(trained(nn.Sequential(nn.Linear(9, 5)), rules=[("*", {"activations": Float()})]))
    scale, store = stored[0].scale.clone(), stored[0].store.clone()
    stored.half()
    assert stored[0].scale.dtype == torch.float32 and torch.equal(stored[0].scale, scale)
    assert torch.equal(stored[0].store, store) and stored[0].bias.dtype == torch.float16
    assert stored(torch.randn(2, 9).half()).dtype == torch.float16


def test_state_survives_copies_and_files():
    model, x = trained(), images()
    mbq_train.initialise(model, x)
    stored = deploy(model.eval(), layout="planes")
    other = copy.deepcopy(stored)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(stored.state_dict())
    set_bits(other, 4)
    assert stored.conv.bit_state.bits == 8 and other.conv.bit_state.bits == 4
    set_bits(stored, 4)
    assert torch.equal(other(x), stored(x))


def test_compiles_as_one_graph():
    stored, x = deploy(trained(rules=[("*", {"activations": Float()})]).eval()), images()
    with torch.no_grad():
        want = stored(x)
        torch.testing.assert_close(torch.compile(stored, fullgraph=True, backend="eager")(x), want)


def test_refusals():
    with pytest.raises(ValueError, match="layout must be one of codes, planes, got 'bits'"):
        deploy(trained(), layout="bits")
    with pytest.raises(ValueError, match="model must hold layers made by convert, got Linear without any"):
        deploy(nn.Linear(3, 3))
    model = trained()
    plain = convert(nn.Sequential(nn.Linear(3, 3)), (8, 4), keep_float=())
    with pytest.raises(ValueError, match="0 must have a DoubleRoundingQuantizer, got WeightQuantizer"):
        deploy(plain)
    model.linear.weight_quantizer.initialised.zero_()
    with pytest.raises(RuntimeError, match="linear: PlainDoubleRounding must have seen a training batch at 8 bits"):
        deploy(model)
    assert not [m for m in model.modules() if isinstance(m, SwitchedConv2d)]
