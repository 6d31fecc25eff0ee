"""Copies, states, checkpoints and exports of networks with a BatchNorm for every pair of bit-widths."""

import copy
import pickle
from itertools import product

import pytest
import torch
from networks import one_thread  # noqa: F401
from torch import nn
from transitional_networks import BITS, IMAGES, chain, converted, mixed_outputs, trained

from mbq_train import (
    DoubleRounding,
    add_bits,
    at_bits,
    convert,
    deploy,
    load_quantized,
    save_checkpoint,
    set_bits,
    set_layer_bits,
)
from mbq_train.conversion.description import describe, described_conversion
from mbq_train.export.one_bit_width import at_one_bit_width


@pytest.fixture
def model():
    return trained(converted())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)),
                                    lambda model: at_bits(model, 8)], ids=["deepcopy", "pickle", "at_bits"])
def test_copies_go_by_their_own_layers(model, copied):
    other = copied(model)
    norm = other[7]
    assert norm.quantizers == (other[3].weight_quantizer, other[6].weight_quantizer)
    assert not set(norm.modules()) & {*norm.quantizers} and not set(norm.quantizers) & {*model.modules()}
    set_bits(model, 4)
    set_bits(other, 2)
    assert (norm.key(), model[7].key()) == ("2,2", "4,4")
    assert all(map(torch.equal, mixed_outputs(model), mixed_outputs(other)))


def test_states_of_every_kind_of_norm_load(model):
    other = converted()
    other.load_state_dict(model.state_dict())
    assert all(map(torch.equal, mixed_outputs(model), mixed_outputs(other.eval())))
    per_bit = trained(converted(batch_norm="per_bit"))
    other.load_state_dict(per_bit.state_dict())
    for earlier, bits in product(BITS, BITS):
        state = other[7].by_pair[f"{earlier},{bits}"].state_dict()
        of_layer = per_bit[7].by_bits[str(bits)].state_dict()
        assert all(torch.equal(value, state[name]) for name, value in of_layer.items())
    network = trained(chain())
    other.load_state_dict(network.state_dict())
    assert all(torch.equal(norm.running_mean, network[7].running_mean) for norm in other[7].by_pair.values())


def test_states_that_do_not_fit_say_so(model):
    six = convert(chain(), (8, 6), weights=DoubleRounding(), example=IMAGES, batch_norm="per_bit")
    with pytest.raises(RuntimeError, match="TransitionalBatchNorm: bit-widths of 7 must be 8,8, 8,4, .*, 32, got a "
                                           "state with 8, 6, 32"):
        model.load_state_dict(six.state_dict())
    with pytest.raises(RuntimeError, match="BitBatchNorm: bit-widths of 7 must be 8, 4, 2, 32, got a state with 8,8"):
        converted(batch_norm="per_bit").load_state_dict(model.state_dict())


def test_a_checkpoint_makes_the_same_network(model, tmp_path):
    save_checkpoint(tmp_path / "file", model)
    again = load_quantized(tmp_path / "file", chain())
    assert describe(again) == describe(model)
    assert all(map(torch.equal, mixed_outputs(model), mixed_outputs(again)))


@pytest.mark.parametrize("transitions", [3, {"4": "3"}, {"4": ["3"]}, {"4": [None, None]}, {"4": ["9", "3"]},
                                         {"4": [None, "9"]}, {"9": [None, "3"]}, {"5": [None, "3"]}], ids=str)
def test_damaged_transitions_are_an_error(model, transitions):
    with pytest.raises(ValueError, match="described_conversion: "):
        described_conversion(chain(), describe(model) | {"transitions": transitions})


def test_a_network_that_has_lost_a_layer_has_no_description(model):
    model[3] = nn.Conv2d(4, 4, 3)
    assert describe(model) is None


def test_added_bit_widths_have_all_pairs(model):
    wider = add_bits(model, (6, 3), [IMAGES])
    widths = (8, 6, 4, 3, 2)
    assert {*wider[7].by_pair} == {"32", *(f"{a},{b}" for a, b in product(widths, widths))}
    near = {6: 8, 3: 4}
    for a, b in product(widths, widths):
        new, old = (norm.by_pair[f"{x},{y}"] for norm, x, y in
                    ((wider[7], a, b), (model[7], near.get(a, a), near.get(b, b))))
        assert torch.equal(new.weight, old.weight)
        assert torch.equal(new.running_mean, old.running_mean) == (a != b or a not in near)
    set_bits(wider, 6)
    assert wider(IMAGES).isfinite().all()


def test_exports_take_the_norm_of_the_configuration(model):
    assert torch.equal(at_one_bit_width(model, 4)[7].weight, model[7].by_pair["4,4"].weight)
    set_layer_bits(model, {"3": 2})
    assert torch.equal(at_one_bit_width(model, 4)[7].weight, model[7].by_pair["2,4"].weight)


def test_deployed_networks_go_by_their_layers(model):
    set_layer_bits(model, {"3": 2})
    expected, stored = mixed_outputs(model), deploy(copy.deepcopy(model))
    assert stored[7].quantizers == (stored[3], stored[6])
    assert all(map(torch.equal, mixed_outputs(stored), expected))
