"""The round-clamp quantizer: values, gradients, bit-widths of single layers, and what is stored of them."""

import copy

import mbq_store
import numpy as np
import pytest
import torch
from mbq_train import add_bits, convert, export_onnx, export_store, initialise, set_bits
from mbq_train.quantize.bits import BitState
from mbq_train.quantize.round_clamp import RoundClampQuantizer, own_layer_bits, set_layer_bits
from networks import conv1d_network, encoder_network, one_thread, small_network  # noqa: F401
from torch import nn

import mbq_kernels


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def network(images, bits=(8,), **options):
    model = convert(small_network(), bits, quantizer="round-clamp", keep_float=(), batch_norm="shared", **options)
    initialise(model, images)
    return model


def quantizer_at(bits, weight, **options):
    return RoundClampQuantizer(BitState((bits,)), weight, **options)


@pytest.mark.parametrize("normalise", ["max", "tanh"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_values_are_those_of_the_op_and_in_eval_mode_those_of_a_store(bits, normalise):
    weight = torch.randn(7, 5, 3)
    quantizer = quantizer_at(bits, weight, normalise=normalise)
    x = weight.tanh() if normalise == "tanh" else weight
    limit = x.abs().max()
    trained = quantizer.train()(weight)
    assert torch.equal(trained, mbq_kernels.round_clamp(x, bits=bits, limit=limit))
    codes, scale, offset = quantizer.encode(weight, bits)
    assert codes.dtype == torch.uint8 and codes.max() <= 2**bits - 1
    assert torch.equal(codes.double(), torch.clamp(torch.round(2**bits * (x.double() / limit.double() / 2 + 0.5)),
                                                   max=2**bits - 1))
    stored = quantizer.eval()(weight)
    assert torch.equal(stored, codes * scale + offset)
    assert (stored - trained).abs().max() <= 2.0**-22 * limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalise", ["max", "tanh"])
def test_short_floats_have_the_same_codes_in_training_and_in_eval_mode(dtype, normalise):
    weight = torch.randn(64, 33).to(dtype)
    quantizer = quantizer_at(8, weight, normalise=normalise)
    trained, stored = quantizer.train()(weight), quantizer.eval()(weight)
    assert trained.dtype == stored.dtype == dtype
    torch.testing.assert_close(stored, trained, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_gradients_pass_straight_through(training):
    weight = torch.randn(4, 6, requires_grad=True)
    grad = torch.randn(4, 6)
    for normalise, slope in (("max", torch.ones(4, 6)), ("tanh", 1 - weight.detach().tanh().square())):
        quantizer = quantizer_at(3, weight, normalise=normalise).train(training)
        (found,) = torch.autograd.grad(quantizer(weight), weight, grad)
        torch.testing.assert_close(found, grad * slope)
    assert not list(quantizer.parameters())


def test_a_layer_of_zeros(tmp_path, images):
    model = network(images)
    nn.init.zeros_(model[3].weight)
    for training in (True, False):
        model.train(training)
        assert torch.equal(model[3].weight_quantizer(model[3].weight), torch.zeros_like(model[3].weight))
    export_store(model, tmp_path / "store", bits=8)
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
    with pytest.raises(ValueError, match="must name layers with a RoundClampQuantizer, got 'conv'"):
        set_layer_bits(model, {"3": 2, "conv": 4})
    with pytest.raises(ValueError, match="set_layer_bits: bits must be between 1 and 8, got 9"):
        set_layer_bits(model, {"0": 2, "3": 9})
    assert own_layer_bits(model) == {}
    with pytest.raises(ValueError, match="normalise must be left alone unless quantizer is 'round-clamp', got 'tanh'"):
        convert(small_network(), (8,), normalise="tanh")
    with pytest.raises(ValueError, match="scale_chain and shared_sum must be left alone .* got scale_chain"):
        convert(small_network(), (8,), quantizer="round-clamp", scale_chain=True)
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
    with pytest.raises(ValueError, match="convert: bits must be between 1 and 8, or 32, got 9"):
        network(images, activation_bits=9)


@pytest.mark.parametrize("layout", ["packed", "codes", "planes"])
def test_a_store_has_the_weights_of_eval_mode_bit_for_bit(images, tmp_path, layout):
    model = network(images).eval()
    for start in range(2 if layout == "planes" else 1, 9, 4):
        set_layer_bits(model, {name: min(8, start + number) for number, name in enumerate(("0", "3", "7", "9"))})
        export_store(model, tmp_path / "store", layout=layout)
        with mbq_store.open(tmp_path / "store") as store:
            assert store.trained_bits == tuple(sorted(set(own_layer_bits(model).values()), reverse=True))
            for name, bits in own_layer_bits(model).items():
                weight = model[int(name)].weight
                assert store.layer(name).bits == bits and not store.layer(name).signed
                computed = model[int(name)].weight_quantizer(weight).detach().numpy()
                assert np.array_equal(store.dequantize(name), computed)
                if layout == "packed":
                    planes = bits * weight.shape[0] * -(-weight[0].numel() // 8)
                    fewest = weight.shape[0] * -(-weight[0].numel() * bits // 8) if bits in (1, 2, 4) else planes
                    stored = store.entry(f"{name}.{store.layer(name).layout}").bytes
                    assert stored == min(fewest, weight.numel()) and (bits not in (1, 2, 4) or stored == fewest)


def test_attention_and_sequences_are_stored_too(tmp_path):
    for make, shape in ((conv1d_network, (3, 2, 16)), (encoder_network, (3, 5, 8))):
        model = convert(make(), (8,), quantizer="round-clamp")
        initialise(model, torch.randn(shape))
        names = [name for name, module in model.named_modules() if hasattr(module, "weight_quantizer")]
        set_layer_bits(model, dict.fromkeys(names, 2))
        export_store(model.eval(), tmp_path / "store", layout="packed")
        with mbq_store.open(tmp_path / "store") as store:
            assert list(store.layers) == names and len(names) >= 2
            for name in names:
                layer = model.get_submodule(name)
                assert store.layer(name).layout == "packed"
                assert np.array_equal(store.dequantize(name), layer.weight_quantizer(layer.weight).detach().numpy())


def test_what_a_store_refuses(images, tmp_path):
    with pytest.raises(ValueError, match="bits must be one of 8, 4, at which 0 was trained, got None"):
        export_store(network(images, (8, 4)), tmp_path / "store")
    double = convert(small_network(), (8, 4), quantizer="double-rounding")
    initialise(double, images)
    with pytest.raises(ValueError, match="layout must be codes or planes for 3, which can be switched, got packed"):
        export_store(double, tmp_path / "store", layout="packed")


def test_an_onnx_file_has_the_layers_bit_widths(images, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = network(images, activation_bits=5).eval()
    widths = {"0": 8, "3": 3, "7": 1, "9": 4}
    set_layer_bits(model, widths)
    export_onnx(model, tmp_path / "model.onnx", bits=8, example=images)
    proto = onnx.load(tmp_path / "model.onnx")
    kinds = sorted(onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in proto.graph.initializer
                   if len(tensor.dims) > 1 and tensor.data_type != onnx.TensorProto.FLOAT)
    assert kinds == ["UINT4", "UINT4", "UINT4", "UINT8"]
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(found, model(images).detach().numpy(), rtol=0, atol=1e-5)
