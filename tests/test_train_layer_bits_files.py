"""Stores, ONNX files and deployed networks keep each layer at its bit-width."""

import copy
import io

import numpy as np
import pytest
import torch
from layer_bits_networks import BITS, MIXED, STORABLE, network, parts
from networks import one_thread  # noqa: F401
from onnx_files import run, weights_of

import mbq_store
from mbq_train import DoubleRounding, deploy, export_onnx, export_store, own_layer_bits, set_bits, set_layer_bits


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", STORABLE)
def test_stores_keep_each_layer_at_its_bit_width(images, kind, tmp_path):
    model = network(images, STORABLE[kind])
    set_layer_bits(model, MIXED)
    export_store(model, tmp_path / "store", layout="packed")
    with mbq_store.open(tmp_path / "store") as store:
        assert store.trained_bits == (4, 2)
        for name, own in MIXED.items():
            assert store.layer(name).bits == own and not store.layer(name).switchable
            assert np.array_equal(store.dequantize(name), parts(model, name, images)[0].numpy())


def test_a_store_has_layers_that_can_be_switched_beside_one_that_cannot(images, tmp_path):
    model = network(images, DoubleRounding())
    set_layer_bits(model, {"3": 4})
    export_store(model, tmp_path / "store")
    with mbq_store.open(tmp_path / "store") as store:
        assert {name: (layer.bits, layer.switchable) for name, layer in
                ((name, store.layer(name)) for name in store.layers)} == {"3": (4, False), "7": (8, True)}
        for bits in BITS:
            set_bits(model, bits)
            assert np.array_equal(store.dequantize("7", bits), parts(model, "7", images)[0].numpy())
        assert np.array_equal(store.dequantize("3"), parts(model, "3", images)[0].numpy())


@pytest.mark.parametrize("kind", STORABLE)
def test_onnx_files_compute_the_configuration(images, kind, tmp_path):
    model = network(images, STORABLE[kind])
    set_layer_bits(model, MIXED)
    export_onnx(model, tmp_path / "file.onnx", bits=8, example=images)
    set_bits(model, 8)
    want = model(images).detach()
    got, = run(tmp_path / "file.onnx", images, optimised=True)
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    for name, (weight, _) in weights_of(tmp_path / "file.onnx").items():
        assert np.array_equal(weight, parts(model, name, images)[0].numpy())


def test_deployed_layers_keep_their_bit_width_and_take_others(images):
    model = network(images, DoubleRounding())
    set_layer_bits(model, MIXED)
    stored = deploy(copy.deepcopy(model))
    assert own_layer_bits(stored) == MIXED
    for configuration in ({}, {"3": 2, "7": 6}, {"3": None}):
        for each in (model, stored):
            set_layer_bits(each, configuration)
            set_bits(each, 8)
        torch.testing.assert_close(stored(images), model(images), rtol=1e-4, atol=1e-5)
    again, file = deploy(network(images, DoubleRounding())), io.BytesIO()
    torch.save(stored.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file))
    assert own_layer_bits(again) == {"7": 6} and torch.equal(again(images), stored(images))
    with pytest.raises(ValueError, match="set_layer_bits: bits of 3 must be between 2 and 8, which its codes have"):
        set_layer_bits(stored, {"3": 1})


def test_states_hold_bit_widths_that_layers_can_have_in_inference_mode_too(images):
    model = network(images)
    set_layer_bits(model, MIXED)
    with torch.inference_mode():
        fresh = copy.deepcopy(network(images))
        fresh(images)
        fresh.load_state_dict(model.state_dict())
        assert own_layer_bits(fresh) == MIXED and torch.equal(fresh(images), model(images))
    for bad in (5.0, -3.0, float("nan"), 2.5):
        state = model.state_dict() | {"3.weight_quantizer.layer_bits": torch.tensor(bad)}
        with pytest.raises(RuntimeError, match="3: layer_bits must be"):
            network(images).load_state_dict(state)
