"""Detection and segmentation at several bit-widths: from convert over training to a store that is switched."""

import copy

import numpy as np
import pytest
import torch
from dense_networks import NETWORKS, inputs
from networks import one_thread  # noqa: F401

import mbq_store
from mbq_train import (
    DoubleRounding,
    Learned,
    convert,
    deploy,
    export_store,
    load_quantized,
    own_layer_bits,
    parameter_groups,
    plan_conversion,
    save_checkpoint,
    set_bits,
    set_layer_bits,
)
from mbq_train.quantize.layers import weight_layers

BITS = (8, 4, 2)
SPECS = {"learned": Learned(), "double-rounding": DoubleRounding()}
pytestmark = pytest.mark.filterwarnings("ignore:convert. norms with running statistics", "ignore:.*inputs are negative")


def converted(kind, weights):
    example = {"pixel_values": inputs(kind)["pixel_values"]}
    return convert(NETWORKS[kind](), BITS, weights=weights, activations=Learned(signed=True), example=example)


def outputs(model, kind):
    with torch.no_grad():
        return model.eval()(pixel_values=inputs(kind, seed=1)["pixel_values"]).logits


@pytest.fixture(scope="module", params=[(kind, spec) for kind in NETWORKS for spec in SPECS],
                ids=lambda param: "-".join(param))
def trained(request):
    """(kind, spec, losses of every step by bit-width, network) after 12 steps on the losses of transformers."""
    kind, spec = request.param
    model, batch = converted(kind, SPECS[spec]).train(), inputs(kind)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=1e-4), lr=2e-3)
    losses = {bits: [] for bits in BITS}
    for _ in range(12):
        for bits in BITS:
            set_bits(model, bits)
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses[bits].append(loss.item())
    return kind, spec, losses, model


def test_the_loss_falls_at_every_bit_width(trained):
    _, _, losses, _ = trained
    for of_bits in losses.values():
        assert np.isfinite(of_bits).all() and np.mean(of_bits[-3:]) < 0.9 * np.mean(of_bits[:3]), of_bits


def test_a_checkpoint_makes_the_same_network(trained, tmp_path):
    kind, _, _, model = trained
    save_checkpoint(tmp_path / "file", model)
    loaded = load_quantized(tmp_path / "file", NETWORKS[kind]())
    for bits in (32, *BITS):
        set_bits(model, bits), set_bits(loaded, bits)
        assert torch.equal(outputs(loaded, kind), outputs(model, kind))


def test_layers_of_their_own_bit_width(trained, tmp_path):
    kind, _, _, model = trained
    set_bits(model, 8)
    uniform = outputs(model, kind)
    names = list(weight_layers(model))[::2]
    set_layer_bits(model, dict.fromkeys(names, 2))
    mixed = outputs(model, kind)
    assert mixed.isfinite().all() and not torch.equal(mixed, uniform)
    export_store(model, tmp_path / "store", bits=8)
    with mbq_store.open(tmp_path / "store") as store:
        assert {name: store.layer(name).bits for name in names} == dict.fromkeys(names, 2)
    set_layer_bits(model, dict.fromkeys(names))
    assert own_layer_bits(model) == {} and torch.equal(outputs(model, kind), uniform)


def test_one_store_serves_every_bit_width(trained, tmp_path):
    kind, spec, _, model = trained
    if spec == "learned":
        pytest.skip("every bit-width has codes of its own")
    export_store(model, tmp_path / "store")
    deployed = deploy(copy.deepcopy(model))
    with mbq_store.open(tmp_path / "store") as store:
        assert set(store.layers) == set(weight_layers(model))
        for bits in BITS:
            set_bits(model, bits), set_bits(deployed, bits)
            for name, layer in weight_layers(model).items():
                assert np.array_equal(store.dequantize(name, bits), layer.quantized_weight().detach().numpy()), name
            torch.testing.assert_close(outputs(deployed, kind), outputs(model, kind), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind, reasons", [
    ("detection", {"keep_float: first": 1, "keep_float: last": 1, "normalisation with running statistics": 6,
                   "embedding": 1}),
    ("segmentation", {"keep_float: first": 1, "keep_float: last": 1, "normalisation": 7}),
])
def test_what_stays_in_float_is_said(kind, reasons):
    plan = plan_conversion(NETWORKS[kind](), BITS, example={"pixel_values": inputs(kind)["pixel_values"]})
    left = [entry for entry in plan.entries if entry.action == "float"]
    for reason, count in reasons.items():
        assert sum(entry.why.startswith(reason) for entry in left) >= count, [(entry.name, entry.why) for entry in left]
    assert all(entry.why for entry in left) and plan.quantized_parameters > 0.6 * plan.parameters
