"""set_layer_bits: every kind of layer computes, trains and is kept at a bit-width of its own."""

import copy
import pickle

import pytest
import torch
from compiled_networks import gradients
from layer_bits_networks import BITS, KINDS, MIXED, network, parts
from networks import one_thread, small_network, tiny_model  # noqa: F401
from torch.optim.swa_utils import AveragedModel

from mbq_train import (
    AnyPrecision,
    DoubleRounding,
    Float,
    Learned,
    RoundClamp,
    Stepper,
    WeightBank,
    add_bits,
    at_bits,
    convert,
    drop_idle_gradients,
    get_bits,
    initialise,
    load_checkpoint,
    own_layer_bits,
    parameter_groups,
    save_checkpoint,
    set_bits,
    set_layer_bits,
)
from mbq_train.batches import Batch


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def backward(model, out):
    """The gradients of out.square().sum(), by name."""
    model.zero_grad()
    out.square().sum().backward()
    drop_idle_gradients(model, [get_bits(model)])
    return gradients(model)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_and_input_of_a_layer_are_those_of_its_bit_width(images, kind):
    model, x = network(images, KINDS[kind]), images.abs()
    at = {}
    for bits in BITS:
        set_bits(model, bits)
        at[bits] = {name: parts(model, name, x) for name in MIXED}
    assert own_layer_bits(model) == {}
    set_layer_bits(model, MIXED)
    assert own_layer_bits(model) == MIXED
    for bits in BITS:
        set_bits(model, bits)
        for name, own in MIXED.items():
            assert all(map(torch.equal, parts(model, name, x), at[own][name])), (bits, name)
    set_layer_bits(model, {"3": None})
    assert own_layer_bits(model) == {"7": 2}
    set_bits(model, 6)
    assert all(map(torch.equal, parts(model, "3", x), at[6]["3"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_uniform_configuration_is_the_model_at_that_bit_width(images, kind):
    model = network(images, KINDS[kind])
    for bits in (8, 2):
        set_layer_bits(model, dict.fromkeys(MIXED))
        set_bits(model, bits)
        want = model(images)
        wanted = backward(model, want)
        set_layer_bits(model, dict.fromkeys(MIXED, bits))
        set_bits(model, 4)
        out = model(images)
        assert torch.equal(out, want)
        found = backward(model, out)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_at_32_bits_every_layer_is_in_float(images):
    model = network(images)
    set_bits(model, 32)
    want = model(images)
    set_layer_bits(model, MIXED)
    assert torch.equal(model(images), want)


def test_inputs_with_a_bit_width_of_their_own_and_those_of_round_clamp_stay(images):
    for options in ({"weights": Learned(), "activations": Learned(bits=6)}, {"weights": RoundClamp()}):
        model = network(images, **options)
        set_layer_bits(model, MIXED)
        for name, own in MIXED.items():
            layer = model.get_submodule(name)
            assert layer.weight_quantizer.bits == own
            assert layer.input_quantizer.bits == (layer.input_quantizer.fixed_bits or get_bits(model))


def test_double_rounding_has_every_bit_width_where_inputs_are_float(images):
    model = network(images, DoubleRounding(), activations=Float())
    set_layer_bits(model, {"3": 5})
    lower = network(images, DoubleRounding(), (8, 5), activations=Float())
    set_bits(lower, 5)
    assert torch.equal(model[3].quantized_weight(), lower[3].quantized_weight())


@pytest.mark.parametrize("kind", KINDS)
def test_copies_states_and_files_keep_the_configuration(images, kind, tmp_path):
    model = network(images, KINDS[kind])
    set_layer_bits(model, MIXED)
    want = model(images)
    fresh = network(images, KINDS[kind])
    fresh.load_state_dict(model.state_dict())
    save_checkpoint(tmp_path / "file", model)
    loaded = network(images, KINDS[kind])
    load_checkpoint(tmp_path / "file", loaded)
    twins = [fresh, loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), at_bits(model, 8)]
    for twin in twins:
        assert own_layer_bits(twin) == MIXED and torch.equal(twin(images), want)
    set_layer_bits(model, dict.fromkeys(MIXED, 8))
    assert own_layer_bits(fresh) == MIXED
    average = AveragedModel(network(images, KINDS[kind]), use_buffers=True)
    average.update_parameters(model)
    assert own_layer_bits(average.module) == dict.fromkeys(MIXED, 8)


def test_states_of_earlier_versions_have_no_layer_bits(images):
    model = network(images, AnyPrecision())
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("layer_bits")}
    network(images, AnyPrecision()).load_state_dict(state)
    set_layer_bits(model, MIXED)
    model.load_state_dict({"3.bias": torch.zeros(6)}, strict=False)
    assert own_layer_bits(model) == MIXED


@pytest.mark.parametrize("schedule", ["each", "accumulate"])
def test_a_step_trains_the_scales_of_the_configuration_alone(images, schedule):
    model = network(images)
    set_layer_bits(model, MIXED)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.0), lr=1e-2)
    batch = Batch(images, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6), 6)
    Stepper(model, (8, 6), optimizer, schedule=schedule)(batch)
    moved = {name for name, value in model.named_parameters() if "scales" in name
             and not torch.equal(value, before[name])}
    assert moved == {f"{name}.{part}_quantizer.scales.{own}" for name, own in MIXED.items()
                     for part in ("weight", "input")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_leaves_them_to_themselves(images, kind):
    model = network(images, KINDS[kind]).train()
    set_layer_bits(model, {"3": 4})
    batch = Batch(images, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6), 6)
    losses = []
    for banked in (False, True):
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        bank = WeightBank(twin, BITS) if banked else None
        stepper = Stepper(twin, BITS, optimizer, schedule="accumulate", bank=bank)
        losses.append(torch.stack([stepper(batch) for _ in range(2)]))
    assert torch.equal(*losses)


def test_first_values_are_those_of_every_bit_width(images):
    model = convert(small_network(), BITS, batch_norm="shared")
    set_layer_bits(model, MIXED)
    initialise(model, images)
    assert own_layer_bits(model) == MIXED
    want = network(images).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items()
               if not name.endswith("layer_bits"))


def test_added_bit_widths_can_be_those_of_layers(images):
    model = network(images)
    set_layer_bits(model, {"3": 2})
    model = add_bits(model, (5,), [images])
    set_layer_bits(model, {"7": 5})
    set_bits(model, 8)
    want = model(images)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), want)
    assert own_layer_bits(model) == {"3": 2, "7": 5}


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_graphs_follow(images, kind):
    model = network(images, KINDS[kind])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for configuration in ({}, MIXED, {"3": 6, "7": 4}, {"3": 8, "7": 8}, {"3": None, "7": None}):
        set_layer_bits(model, configuration)
        want = model(images)
        wanted = backward(model, want)
        out = compiled(images)
        torch.testing.assert_close(out, want)
        found = backward(model, out)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize("bits, error, message", [
    ({"3": 4, "conv": 4}, ValueError, "bits must name layers with a quantized weight, .* 3, 7, ..., got 'conv'"),
    ({"3": 4, "0": 4}, ValueError, "got '0'"),
    ({"3": 4, "7": 5}, ValueError, "set_layer_bits: bits of 7 must be one of 8, 6, 4, 2, which are trained, got 5"),
    ({"3": 4, "7": 32}, ValueError, "got 32"),
    ({"3": 4, "7": 2.0}, TypeError, "bits must be integers or None, got 2.0 for 7"),
    ({"3": 4, "7": True}, TypeError, "got True"),
])
def test_bad_bit_widths_change_nothing(images, bits, error, message):
    for weights in (Learned(), DoubleRounding(), AnyPrecision()):
        model = network(images, weights)
        with pytest.raises(error, match=message):
            set_layer_bits(model, bits)
        assert own_layer_bits(model) == {}


def test_a_float_network_has_no_layers_to_give_bit_widths():
    with pytest.raises(ValueError, match="bits must name layers with a quantized weight, got '3'"):
        set_layer_bits(tiny_model(), {"3": 4})
    set_layer_bits(tiny_model(), {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_filled_before_does_not_serve_another_configuration(images, kind):
    model = network(images, KINDS[kind])
    set_layer_bits(model, {"3": 2})
    want = model(images)
    set_layer_bits(model, {"3": None})
    bank = WeightBank(model, BITS)
    bank.fill()
    set_layer_bits(model, {"3": 2})
    assert torch.equal(model(images), want)
    bank.drop()
