"""The round-clamp quantizer: values, gradients, bit-widths of single layers, and what is stored of them."""

import copy

import lsb_oracles
import numpy as np
import pytest
import torch
from networks import one_thread, small_network, specs  # noqa: F401
from round_clamp_networks import network, quantizer_at, widest
from torch import nn

import mbq_kernels
import mbq_store
from mbq_train import RoundClamp, add_bits, convert, export_store, set_bits
from mbq_train.quantize.layer_bits import own_layer_bits, set_layer_bits
from mbq_train.quantize.round_clamp import FORMS


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("normalise", ["max", "tanh"])
@pytest.mark.parametrize("form, bits", [(form, b) for form in FORMS for b in range(1, widest(form) + 1)])
def test_values_in_training_and_in_eval_mode_are_codes_times_a_scale(bits, normalise, form):
    weight = torch.randn(7, 5, 3)
    quantizer = quantizer_at(bits, weight, normalise=normalise, form=form)
    x = weight.tanh() if normalise == "tanh" else weight
    trained = quantizer.train()(weight)
    assert torch.equal(trained, lsb_oracles.values(x, x.abs().max(), None, bits, form))
    assert torch.equal(trained, quantizer.eval()(weight))
    codes, scales, _ = quantizer.codes(weight, bits)
    scale = scales[0]
    assert codes.dtype == torch.int8 and torch.equal(codes * scale, trained)
    assert np.array_equal(codes.numpy(), lsb_oracles.signed_codes(x, x.abs().max(), None, bits, form))
    assert quantizer.code_bits(bits) == bits + (form == "sign-magnitude")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("limit", [1e38, 3e38, 1e-30])
def test_codes_of_large_and_small_weights(limit, form):
    weight = torch.linspace(-1, 1, 201) * limit
    quantizer = quantizer_at(3, weight.view(3, 67), form=form)
    codes, scales, _ = quantizer.codes(weight, 3)
    scale = scales[0]
    assert torch.equal(codes * scale, quantizer(weight)) and scale.isfinite()
    assert codes.unique().tolist() == list(range(*((-4, 4) if form == "offset" else (-7, 8))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalise", ["max", "tanh"])
def test_short_floats_are_codes_times_a_scale_rounded_once(dtype, normalise, form):
    weight = torch.randn(64, 33).to(dtype)
    quantizer = quantizer_at(7, weight, normalise=normalise, form=form)
    codes, scales, _ = quantizer.codes(weight, 7)
    scale = scales[0]
    assert torch.equal(quantizer.train()(weight), (codes * scale).to(dtype))
    assert torch.equal(quantizer.eval()(weight), (codes * scale).to(dtype))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_pass_straight_through(training, form):
    weight = torch.randn(4, 6, requires_grad=True)
    grad = torch.randn(4, 6)
    for normalise, slope in (("max", torch.ones(4, 6)), ("tanh", 1 - weight.detach().tanh().square())):
        quantizer = quantizer_at(3, weight, normalise=normalise, form=form).train(training)
        (found,) = torch.autograd.grad(quantizer(weight), weight, grad)
        torch.testing.assert_close(found, grad * slope)
    assert not list(quantizer.parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [1, 7])
def test_a_layer_of_zeros(tmp_path, images, form, bits):
    model = network(images, (bits,), form=form)
    nn.init.zeros_(model[3].weight)
    for training in (True, False):
        model.train(training)
        assert torch.equal(model[3].weight_quantizer(model[3].weight), torch.zeros_like(model[3].weight))
    export_store(model, tmp_path / "store", bits=bits)
    with mbq_store.open(tmp_path / "store") as store:
        assert not store.dequantize("3").any()


def test_a_layer_has_a_bit_width_of_its_own(images):
    model = network(images, (8, 4)).eval()
    weight = model[3].weight
    at = {bits: mbq_kernels.round_clamp(weight, bits=bits, limit=weight.abs().max()).detach() for bits in (8, 4, 3)}
    model[3].train()
    assert own_layer_bits(model) == {}
    set_bits(model, 4)
    assert torch.equal(model[3].weight_quantizer(weight), at[4])
    set_layer_bits(model, {"3": 3})
    assert own_layer_bits(model) == {"3": 3}
    for bits in (8, 4):
        set_bits(model, bits)
        assert torch.equal(model[3].weight_quantizer(weight), at[3])
        assert model[0].weight_quantizer.bits == bits
    set_bits(model, 32)
    assert model[3].weight_quantizer(weight) is weight
    fresh = network(images, (8, 4))
    fresh.load_state_dict(model.state_dict())
    assert own_layer_bits(fresh) == own_layer_bits(copy.deepcopy(model)) == {"3": 3}
    set_layer_bits(model, {"3": 2})
    assert own_layer_bits(fresh) == {"3": 3}


def test_bad_bit_widths_of_layers_change_nothing(images):
    model = network(images)
    with pytest.raises(ValueError, match="must name layers with a quantized weight, .* got 'conv'"):
        set_layer_bits(model, {"3": 2, "conv": 4})
    with pytest.raises(ValueError, match="set_layer_bits: bits must be between 1 and 8, got 9"):
        set_layer_bits(model, {"0": 2, "3": 9})
    assert own_layer_bits(model) == {}
    with pytest.raises(ValueError, match="normalise must be left alone unless quantizer is round-clamp, got 'tanh'"):
        specs(normalise="tanh")
    with pytest.raises(ValueError, match="form must be left alone unless quantizer is round-clamp, got 'sign-magn"):
        specs(form="sign-magnitude")
    with pytest.raises(ValueError, match="form must be one of offset, sign-magnitude, got 'sign'"):
        convert(small_network(), (8,), weights=RoundClamp(form="sign"))
    with pytest.raises(ValueError, match="scale_chain must be left alone unless quantizer is double-rounding"):
        specs(quantizer="round-clamp", scale_chain=True)
    set_layer_bits(model, {"3": 2})
    with pytest.raises(ValueError, match="3: bits must be left alone where a layer has .* of its own, 2, got 4"):
        add_bits(model, (4,), [images])


def test_activations_have_a_bit_width_of_their_own(images):
    model = network(images, (8, 2), activation_bits=3)
    quantizer = model[3].input_quantizer
    assert list(quantizer.scales) == ["3"] and not quantizer.missing
    x = torch.rand(50)
    for bits in (8, 2):
        set_bits(model, bits)
        expected = mbq_kernels.fake_quantize(x, quantizer.scale(3), bits=3, signed=bool(quantizer.is_signed))
        assert torch.equal(quantizer(x), expected) and quantizer(x).unique().numel() <= 8
    set_bits(model, 32)
    assert quantizer(x) is x
    fresh = network(images, (8, 2), activation_bits=3)
    fresh.load_state_dict(model.state_dict())
    assert isinstance(network(images, activation_bits=32)[3].input_quantizer, nn.Identity)
    with pytest.raises(ValueError, match="Learned: bits must be between 1 and 8, got 9"):
        network(images, activation_bits=9)
