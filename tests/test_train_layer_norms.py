"""BatchNorm for every bit-width where layers have bit-widths of their own."""

import copy
import pickle

import pytest
import torch
from layer_bits_networks import BITS, KINDS, MIXED
from networks import one_thread, small_network  # noqa: F401

from mbq_train import (
    DoubleRounding,
    Learned,
    RoundClamp,
    add_bits,
    convert,
    deploy,
    load_quantized,
    own_layer_bits,
    save_checkpoint,
    set_bits,
    set_layer_bits,
)


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_is_that_of_its_layers_bit_width(images, kind, tmp_path):
    model = convert(small_network(), BITS, weights=KINDS[kind], example=images)
    save_checkpoint(tmp_path / "file", model)
    loaded = load_quantized(tmp_path / "file", small_network())
    deployed = deploy(copy.deepcopy(model)) if kind == "double-rounding" else copy.deepcopy(model)
    for each in (model, loaded, pickle.loads(pickle.dumps(model)), deployed):
        set_bits(each, 8)
        assert [each[1].key(), each[4].key()] == ["8", "8"]
        set_layer_bits(each, MIXED)
        assert [each[1].key(), each[4].key()] == ["8", "4"]  # the first follows a layer in float
        assert torch.isfinite(each(images)).all()
        set_bits(each, 32)
        assert each[4].in_use() is each[4].by_bits["32"]
        set_layer_bits(each, {"3": None})
        set_bits(each, 2)
        assert each[4].in_use() is each[4].by_bits["2"]


def test_batch_norm_of_a_bit_width_that_was_not_trained_is_the_nearest(images):
    model = convert(small_network(), (8, 4, 2), weights=DoubleRounding(), activations=Learned(bits=8), example=images)
    for own, nearest in ((7, "8"), (6, "8"), (5, "4"), (3, "4")):
        set_layer_bits(model, {"3": own})
        assert model[4].key() == nearest and model.eval()(images).isfinite().all()
    want = model(images)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), want)


def test_adding_bit_widths_estimates_their_statistics_alone(images):
    model = convert(small_network(), (8, 4), example=images)
    set_layer_bits(model, {"3": 4})
    added = add_bits(model, (3,), [3 * images])
    assert own_layer_bits(added) == {"3": 4}
    for bits in (8, 4):
        assert torch.equal(added[4].by_bits[str(bits)].running_mean, model[4].by_bits[str(bits)].running_mean)
    assert not torch.equal(added[4].by_bits["3"].running_mean, model[4].by_bits["4"].running_mean)


def test_pairs_take_the_nearest_bit_widths_too(images):
    model = convert(small_network(), (8, 4), weights=RoundClamp(), batch_norm="transitional", example=images)
    set_layer_bits(model, {"3": 3})
    assert model[4].key() == "8,4" and model(images).isfinite().all() and copy.deepcopy(model)(images).isfinite().all()
