"""From a trained network to an int8 store, and back to the same weights at every bit-width."""

import importlib.util
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from networks import one_thread, small_network, specs  # noqa: F401
from typer.testing import CliRunner

import mbq_store
from mbq_lab import build_model
from mbq_lab.command.app import app
from mbq_train import DoubleRounding, Float, convert, initialise, set_bits
from mbq_train.deployment import deploy
from mbq_train.export import export_store

BITS = (8, 6, 4, 2)


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def network(images, rounding="half_even", quantizer="double-rounding"):
    options = {"rounding": rounding} if quantizer == "double-rounding" else {}
    model = convert(small_network(), BITS, batch_norm="shared", **specs(quantizer=quantizer, **options))
    initialise(model, images)
    return model.eval()


@pytest.mark.parametrize("layout", ["codes", "planes"])
@pytest.mark.parametrize("rounding", ["half_even", "half_up"])
def test_every_bit_width_of_the_store_has_the_trained_weights_bit_for_bit(images, tmp_path, rounding, layout):
    model = network(images, rounding)
    export_store(model, tmp_path / "store", layout=layout)
    deployed = deploy(network(images, rounding), layout=layout)
    with mbq_store.open(tmp_path / "store") as store:
        assert list(store.layers) == ["3", "7"] and store.rounding == rounding and store.trained_bits == BITS
        for bits in BITS:
            set_bits(model, bits), set_bits(deployed, bits)
            for name in store.layers:
                layer = model[int(name)]
                weight = layer.weight_quantizer(layer.weight).detach().numpy()
                assert np.array_equal(store.dequantize(name, bits), weight)
            twin = network(images, rounding)
            set_bits(twin, bits)
            for name in store.layers:
                twin[int(name)].weight_quantizer = torch.nn.Identity()
                twin[int(name)].weight.data = torch.from_numpy(store.dequantize(name, bits))
            assert torch.equal(twin(images), model(images))
            torch.testing.assert_close(deployed(images), model(images), rtol=0, atol=1e-5)
        rest = {name: store.tensor(name) for name in store.rest}
    assert "0.weight" in rest and "3.bias" in rest and not [name for name in rest if name.startswith("3.weight")]
    assert np.array_equal(rest["0.weight"], model[0].weight.detach().numpy())


def test_learned_scales_are_stored_at_one_bit_width(images, tmp_path):
    model = network(images, quantizer="learned")
    with pytest.raises(ValueError, match="bits must be one of 8, 6, 4, 2, at which 3 was trained, got None"):
        export_store(model, tmp_path / "store")
    export_store(model, tmp_path / "store", bits=4, rest="bfloat16")
    set_bits(model, 4)
    with mbq_store.open(tmp_path / "store") as store:
        assert not store.layer("3").switchable
        weight = model[3].weight_quantizer(model[3].weight).detach()
        assert np.array_equal(store.dequantize("3"), weight.numpy())
        assert np.array_equal(store.tensor("0.weight"), model[0].weight.detach().bfloat16().float().numpy())


def test_what_cannot_be_exported_is_an_error(images, tmp_path):
    with pytest.raises(ValueError, match="export_store: model must hold layers made by convert"):
        export_store(small_network(), tmp_path / "store")
    with pytest.raises(ValueError, match="did you mean 'codes'"):
        export_store(network(images), tmp_path / "store", layout="code")
    with pytest.raises(RuntimeError, match="must have seen a training batch"):
        export_store(convert(small_network(), BITS, weights=DoubleRounding()), tmp_path / "store")
    for make in (lambda model: export_store(model, tmp_path / "store"), deploy):
        with pytest.raises(TypeError, match="weight of 3 must be float32, bfloat16 or float16, got torch.float64"):
            make(network(images).double())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("classes, size, options, stored, packed", [
    (10, 32, {"keep_float": ()}, 0.27, 0.15), (1000, 64, {}, 0.30, 0.18)])
def test_a_resnet18_is_small(tmp_path, classes, size, options, stored, packed):
    """Files with one BatchNorm a bit-width, as parts of the float network's."""
    model = build_model("resnet18", classes=classes, in_channels=3, image_size=(size, size))
    as_float = sum(tensor.nbytes for tensor in model.state_dict().values())
    initialise(convert(model, BITS, **specs(quantizer="double-rounding", **options)), torch.randn(2, 3, size, size))
    export_store(model, tmp_path / "store")
    mbq_store.switch(tmp_path / "store", 4, tmp_path / "low")
    assert 44e6 < as_float < 47e6
    assert (tmp_path / "store").stat().st_size <= stored * as_float
    assert (tmp_path / "low").stat().st_size <= packed * as_float


def test_a_layer_under_two_names_is_stored_under_both(tmp_path):
    """No float weight stays in the rest."""
    layer = torch.nn.Linear(6, 6)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), layer, torch.nn.ReLU(), torch.nn.ModuleDict({"again": layer}))
    model = convert(model, BITS, keep_float=("0",), rules=[("1", {"activations": Float()})], weights=DoubleRounding())
    initialise(model[1], torch.randn(3, 6))
    export_store(model, tmp_path / "store")
    with mbq_store.open(tmp_path / "store") as store:
        assert store.layers == ("1", "3.again")
        assert sorted(store.rest) == ["0.bias", "0.weight", "1.bias", "3.again.bias"]
        assert np.array_equal(store.codes("1", 4), store.codes("3.again", 4))


@pytest.mark.parametrize("found", [None, ModuleSpec("mbq_store", None)], ids=["nothing", "a folder of its name"])
def test_a_missing_package_is_named_with_the_way_to_install_it(images, tmp_path, monkeypatch, found):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(ImportError, match="^export_store: the package mbq_store must be installed, got none: "
                                          "pip install ./python/mbq_store "):
        export_store(network(images), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_networks_converted_apart(images, tmp_path):
    """One store has one second rounding; the bit-widths it was trained at are those of all parts."""
    parts = [network(images), network(images, "half_up")]
    with pytest.raises(ValueError, match="model must have one rounding in all layers, got half_even, half_up"):
        export_store(torch.nn.Sequential(*parts), tmp_path / "store")
    other = convert(small_network(), (8, 4, 3), weights=DoubleRounding())
    initialise(other, images)
    export_store(torch.nn.Sequential(parts[0], other), tmp_path / "store")
    with mbq_store.open(tmp_path / "store") as store:
        assert store.trained_bits == (8, 4)


def test_the_commands_train_export_switch_and_inspect(tmp_path, monkeypatch):
    def mbq(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    run, store, low, plot = (tmp_path / name for name in ("run", "store", "low", "plot.png"))
    mbq("train", "--quantizer", "double-rounding", "--rounding", "half_up", "--epochs", 1, "--float-epochs", 1,
        "--batch-size", 256, "--out", run)
    assert "MiB" in mbq("export", run, "--store", store, "--layout", "planes")
    shown = mbq("inspect", store, "--plot", plot)
    assert "at fewer bits (half_up)" in shown and "4 bits: " in shown and plot.read_bytes()[:4] == b"\x89PNG"
    mbq("switch", store, "--bits", 4, "-o", low)
    assert low.stat().st_size < store.stat().st_size
    with mbq_store.open(store) as full, mbq_store.open(low) as four:
        for name in full.layers:
            assert np.array_equal(full.dequantize(name, 4), four.dequantize(name))
    assert "MiB  as float32: " in mbq("inspect", low)
    refused = CliRunner().invoke(app, ["inspect", str(low), "--plot", str(tmp_path / "none.png")])
    assert refused.exit_code == 2 and "got one bit-width in every layer" in refused.stderr
    assert not (tmp_path / "none.png").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused = CliRunner().invoke(app, ["inspect", str(low)])
    assert refused.exit_code == 2 and "pip install ./python/mbq_store" in refused.stderr
