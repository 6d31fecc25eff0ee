"""Stores and ONNX files of networks with the round-clamp quantizer."""

import numpy as np
import pytest
import torch
from networks import conv1d_network, encoder_network, one_thread, small_network  # noqa: F401
from round_clamp_networks import network, widest

import mbq_store
from mbq_train import DoubleRounding, RoundClamp, convert, export_onnx, export_store, initialise
from mbq_train.quantize.layer_bits import own_layer_bits, set_layer_bits
from mbq_train.quantize.round_clamp import FORMS


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", ["packed", "codes", "planes"])
@pytest.mark.parametrize("form", FORMS)
def test_a_store_has_the_weights_of_training_bit_for_bit(images, tmp_path, layout, form):
    model = network(images, form=form).train()
    most = widest(form)
    for start in range(2 if layout == "planes" and form == "offset" else 1, most + 1, 4):
        widths = {name: min(most, start + number) for number, name in enumerate(("0", "3", "7", "9"))}
        set_layer_bits(model, widths)
        export_store(model, tmp_path / "store", layout=layout)
        with mbq_store.open(tmp_path / "store") as store:
            assert store.trained_bits == tuple(sorted(set(widths.values()), reverse=True))
            for name, bits in widths.items():
                layer, stored = model[int(name)], store.layer(name)
                assert stored.bits == bits + (form == "sign-magnitude")
                assert stored.signed == (stored.bits > 1) and stored.has_offset == (stored.bits == 1)
                for training in (True, False):
                    computed = layer.train(training).weight_quantizer(layer.weight).detach().numpy()
                    assert np.array_equal(store.dequantize(name), computed)
                if layout == "packed":
                    check_smallest(store.entry(f"{name}.{stored.layout}").bytes, stored)


def check_smallest(nbytes, layer):
    fields = layer.rows * -(-layer.columns * layer.bits // 8)
    planes = layer.bits * layer.rows * -(-layer.columns // 8)
    in_fields = layer.bits in (1, 2, 4)
    assert nbytes == min(fields if in_fields else planes, layer.rows * layer.columns)
    assert not in_fields or nbytes == fields


def test_stores_of_unsigned_codes_with_an_offset_are_read_as_before(tmp_path):
    codes = np.arange(16, dtype=np.uint8).reshape(2, 8)
    scale, offset = np.array([0.3, 0.7], np.float32), np.array([-2.4, -5.6], np.float32)
    data = mbq_store.LayerData("layer", codes, scale, offset, bits=4, signed=False, layout="packed", switchable=False)
    mbq_store.write(tmp_path / "store", [data], rounding="half_even")
    with mbq_store.open(tmp_path / "store") as store:
        assert np.array_equal(store.dequantize("layer"), codes * scale[:, None] + offset[:, None])


def test_eight_bits_beside_a_sign_are_not_stored(images, tmp_path):
    """But trained and evaluated; the layer is named, whichever bit-width the others have."""
    model = network(images, form="sign-magnitude").eval()
    set_layer_bits(model, {"0": 2, "3": 7, "9": 1})
    assert model(images).isfinite().all() and model[7].weight_quantizer(model[7].weight).unique().numel() > 100
    message = "7: bits must be at most 7 to store codes of the form 'sign-magnitude', .* got 8"
    for layout in ("codes", "packed"):
        with pytest.raises(ValueError, match=message):
            export_store(model, tmp_path / "store", bits=8, layout=layout)
    pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match=message):
        export_onnx(model, tmp_path / "model.onnx", bits=8, example=images)
    assert not list(tmp_path.iterdir())


def test_attention_and_sequences_are_stored_too(tmp_path):
    for make, shape in ((conv1d_network, (3, 2, 16)), (encoder_network, (3, 5, 8))):
        model = convert(make(), (8,), weights=RoundClamp())
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
    double = convert(small_network(), (8, 4), weights=DoubleRounding())
    initialise(double, images)
    with pytest.raises(ValueError, match="layout must be codes or planes for 3, which can be switched, got packed"):
        export_store(double, tmp_path / "store", layout="packed")


@pytest.mark.parametrize("form, kinds", [("offset", ["INT4", "INT4", "INT4", "INT8"]),
                                         ("sign-magnitude", ["INT4", "INT4", "INT8", "INT8"])])
def test_an_onnx_file_has_the_layers_bit_widths_and_the_codes(images, tmp_path, form, kinds):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = network(images, activation_bits=5, form=form).eval()
    set_layer_bits(model, {"0": widest(form), "3": 3, "7": 1, "9": 4})
    export_onnx(model, tmp_path / "model.onnx", bits=8, example=images)
    proto = onnx.load(tmp_path / "model.onnx")
    stored = {tuple(tensor.dims): tensor for tensor in proto.graph.initializer
              if len(tensor.dims) > 1 and tensor.data_type != onnx.TensorProto.FLOAT}
    assert sorted(onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in stored.values()) == kinds
    for layer in (model[int(name)] for name in own_layer_bits(model)):
        codes = onnx.numpy_helper.to_array(stored[tuple(layer.weight.shape)]).astype(np.int8)
        expected, scale, _ = layer.weight_quantizer.codes(layer.weight, layer.weight_quantizer.bits)
        scale = scale[0]
        assert np.array_equal(codes, expected.numpy())
        assert torch.equal(expected * scale, layer.weight_quantizer(layer.weight))
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(found, model(images).detach().numpy(), rtol=0, atol=1e-5)
