"""Quantizers of Any-Precision and the correction of quantized weights, as modules."""

import warnings

import numpy as np
import pytest
import torch
from networks import one_thread, small_network, specs  # noqa: F401
from quantization_time import quantization_time
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import mbq_store
from mbq_train import (
    AnyPrecision,
    BitState,
    DoubleRounding,
    DoubleRoundingQuantizer,
    Learned,
    WeightBank,
    WeightQuantizer,
    add_bits,
    convert,
    deploy,
    export_store,
    initialise,
    set_bits,
)
from mbq_train.quantize.any_precision import AnyPrecisionActivation, AnyPrecisionWeight, normalised

BITS = (8, 4, 2, 1)


@pytest.fixture
def weight():
    return torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def paper(weight, bits):
    """The formula of the paper's public code, in float64."""
    weight = weight.double()
    u = weight.tanh() / (2 * weight.tanh().abs().max()) + 0.5
    return weight.abs().mean() * (2 * torch.round((2**bits - 1) * u) / (2**bits - 1) - 1)


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_the_papers_and_every_weight_has_a_gradient(weight, bits):
    state = BitState(BITS)
    state.select(bits)
    quantizer = AnyPrecisionWeight(state, weight)
    weight.requires_grad_()
    out = quantizer(weight)
    torch.testing.assert_close(out.double(), paper(weight.detach(), bits), rtol=0, atol=1e-6)
    assert len(out.unique()) <= 2**bits and not list(quantizer.parameters())
    grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    out.backward(grad)
    w = weight.detach().double()
    expected = grad.double() * w.abs().mean() * (1 - w.tanh().square()) / w.tanh().abs().max()
    torch.testing.assert_close(weight.grad.double(), expected, rtol=1e-5, atol=1e-7)


def test_32_bits_are_the_weight_that_is_rounded_and_a_relu_of_the_input(weight):
    state = BitState(BITS)
    state.select(32)
    expected = weight.abs().mean() * weight.tanh() / weight.tanh().abs().max()
    torch.testing.assert_close(AnyPrecisionWeight(state, weight)(weight), expected)
    x = torch.tensor([-1.0, 0.3, 2.0])
    assert torch.equal(AnyPrecisionActivation(state).eval()(x), torch.tensor([0.0, 0.3, 2.0]))


@pytest.mark.parametrize("bits", BITS)
def test_activations_are_clamped_to_a_unit_and_rounded(bits):
    state = BitState(BITS)
    state.select(bits)
    quantizer = AnyPrecisionActivation(state).eval()
    x = torch.tensor([-0.5, 0.0, 0.11, 0.49, 0.51, 1.0, 1.5], requires_grad=True)
    out, hi = quantizer(x), 2**bits - 1
    torch.testing.assert_close(out.detach(), (x.detach().clamp(0, 1) * hi).round() / hi, rtol=0, atol=1e-6)
    out.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_negative_inputs_warn_once_in_training():
    quantizer = AnyPrecisionActivation(BitState(BITS), layer_name="block")
    with pytest.warns(RuntimeWarning, match=r"block: inputs are negative.*Learned\(\) activations keep them"):
        quantizer(torch.tensor([-1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer(torch.tensor([-1.0]))


def test_weights_of_zeros_and_a_single_weight_stay_finite():
    for weight in (torch.zeros(2, 3), torch.full((1, 1), -0.5)):
        quantizer = AnyPrecisionWeight(BitState(BITS), weight, correction=True)
        for bits in (*BITS, 32):
            quantizer.bit_state.select(bits)
            assert torch.isfinite(quantizer(weight)).all()


MAKERS = {"learned": WeightQuantizer, "double-rounding": DoubleRoundingQuantizer, "any-precision": AnyPrecisionWeight}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("bits", [8, 2])
def test_corrected_weights_have_the_moments_of_the_float_ones(weight, name, bits):
    weight = weight + 0.3 * torch.arange(6).reshape(6, 1, 1, 1)
    state = BitState((8, 4, 2))
    quantizer = MAKERS[name](state, weight, correction=True)
    plain = MAKERS[name](state, weight)
    for b in (8, 4, 2):
        state.select(b)
        quantizer(weight), plain(weight)
    state.select(bits)
    out = quantizer(weight).detach().double().flatten(1)
    reference = (normalised(weight)[0] if name == "any-precision" else weight).double().flatten(1)
    torch.testing.assert_close(out.mean(1), reference.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.std(1), reference.std(1), rtol=1e-5, atol=1e-6)
    codes = plain(weight).detach().flatten(1)
    assert all(len(out[c].unique()) == len(codes[c].unique()) for c in range(6))
    state.select(32)
    assert torch.equal(quantizer(weight), plain(weight))


@pytest.mark.parametrize("quantizer, correction", [("any-precision", False), ("any-precision", True), ("learned", True),
                                                   ("double-rounding", True)])
def test_weight_bank_profile_and_untrained_bits(images, quantizer, correction):
    bits = (8, 4, 2)
    model = convert(small_network(), bits, batch_norm="shared",
                    **specs(quantizer=quantizer, weight_correction=correction))
    initialise(model, images)
    bank = WeightBank(model, (32, *bits))
    bank.fill()
    held = {b: value.detach().clone() for b, value in model[3].weight_quantizer.held.items()}
    bank.drop()
    assert list(held) == list(bits)
    for b, value in held.items():
        set_bits(model, b)
        assert torch.equal(value, model[3].weight_quantizer(model[3].weight))
    assert quantization_time(model, images, repeats=1).calls == 2 * 2 * 3
    wider = add_bits(model, (6, 3), [images])
    for b in (6, 3):
        set_bits(wider, b)
        assert torch.isfinite(wider.eval()(images)).all()


def test_compiled_network_has_the_eager_values(images):
    model = convert(small_network(), BITS, batch_norm="shared", weights=AnyPrecision(correction=True))
    model.eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for bits in (8, 4, 2, 1, 4):
        set_bits(model, bits)
        torch.testing.assert_close(compiled(images), model(images))
    assert counter.frame_count <= 2


def test_autocast_gives_bfloat16(weight):
    quantizer = AnyPrecisionWeight(BitState(BITS), weight, correction=True)
    for bits in (4, 32):
        quantizer.bit_state.select(bits)
        with torch.autocast("cpu", torch.bfloat16):
            assert quantizer(weight).dtype == torch.bfloat16


@pytest.mark.parametrize("quantizer", ["any-precision", "learned"])
@pytest.mark.parametrize("correction", [False, True])
def test_a_store_gives_back_the_weights_with_the_correction_folded_in(images, tmp_path, quantizer, correction):
    model = convert(small_network(), BITS, batch_norm="shared",
                    **specs(quantizer=quantizer, weight_correction=correction))
    initialise(model, images)
    for bits in BITS:
        export_store(model, tmp_path / "store", bits=bits)
        set_bits(model, bits)
        with mbq_store.open(tmp_path / "store") as store:
            assert not store.layer("3").switchable and list(store.layers) == ["3", "7"]
            for name in store.layers:
                layer = model[int(name)]
                expected = layer.weight_quantizer(layer.weight).detach().numpy()
                if quantizer == "learned" or correction:
                    assert np.array_equal(store.dequantize(name), expected)
                else:
                    np.testing.assert_allclose(store.dequantize(name), expected, rtol=0, atol=1e-7)


def test_what_does_not_fit_is_an_error(images, tmp_path):
    with pytest.raises(ValueError, match="learn_offset must be left alone unless activation_quantizer is learned, got"):
        specs(quantizer="any-precision", learn_offset=True)
    with pytest.raises(ValueError, match="activations must leave correction of AnyPrecision alone"):
        convert(small_network(), BITS, activations=AnyPrecision(correction=True))
    with pytest.raises(TypeError, match="correction must be True or False, got 1"):
        convert(small_network(), BITS, weights=Learned(correction=1))
    model = convert(small_network(), (8, 4), weights=AnyPrecision())
    with pytest.raises(ValueError, match="export_store: bits must be one of 8, 4, at which 3 was trained, got 3"):
        export_store(model, tmp_path / "store", bits=3)
    corrected = convert(small_network(), (8, 4), weights=DoubleRounding(correction=True))
    initialise(corrected, images)
    with pytest.raises(ValueError, match="weight correction, which differs between bit-widths"):
        export_store(corrected, tmp_path / "store")
    with pytest.raises(ValueError, match="weight correction, which differs between bit-widths"):
        deploy(corrected)


@pytest.mark.parametrize("empty", [False, True], ids=["assigned", "to_empty"])
def test_a_network_made_on_the_meta_device_computes_once_its_state_is_loaded(empty):
    """Nothing that the state does not hold is left on the meta device, or without a value."""
    def network():
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    torch.manual_seed(0)
    model, x = convert(network(), (8, 2), weights=AnyPrecision()), torch.rand(5, 4)
    with torch.device("meta"):
        other = convert(network(), (8, 2), weights=AnyPrecision())
    other = other.to_empty(device="cpu") if empty else other
    other.load_state_dict(model.state_dict(), assign=not empty)
    for bits in (8, 2):
        with set_bits(model, bits), set_bits(other, bits):
            assert torch.equal(other(x), model(x)) and not other(x).isnan().any()
