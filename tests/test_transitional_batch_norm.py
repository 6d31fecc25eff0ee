"""One BatchNorm for every pair of bit-widths: of the layer before, and of the layer that is normalised."""

import copy
from itertools import product

import pytest
import torch
from networks import one_thread  # noqa: F401
from torch import nn
from torch.utils.checkpoint import checkpoint
from transitional_networks import BITS, IMAGES, TRANSITIONS, PreActivation, Residual, chain, converted, trained

from mbq_train import (
    BitBatchNorm,
    RoundClamp,
    TransitionalBatchNorm,
    adapt_bn,
    convert,
    make_transitional,
    plan_conversion,
    set_bits,
    set_layer_bits,
    spread_batch_norms,
)
from mbq_train.conversion import call_order
from mbq_train.conversion.description import describe


@pytest.fixture
def model():
    return trained(converted())


@pytest.mark.parametrize("make", TRANSITIONS)
def test_pairs_are_found_by_what_reaches_the_norm(make):
    plan = plan_conversion(make(), BITS, example=IMAGES, batch_norm="transitional")
    actions = {entry.name: entry.action for entry in plan.entries if "BatchNorm" in entry.type}
    assert {name for name, action in actions.items() if action == "transitional"} == TRANSITIONS[make].keys()
    assert set(actions.values()) == {"transitional", "per_bit"}
    model = converted(make)
    assert describe(model)["transitions"] == TRANSITIONS[make]
    assert describe(make_transitional(converted(make, batch_norm="per_bit"), IMAGES)) == describe(model)


def test_where_values_cannot_be_followed_the_order_of_calls_counts(monkeypatch):
    def fails(*args, **options):
        raise RuntimeError

    monkeypatch.setattr(call_order._Origins, "__torch_dispatch__", fails)
    assert describe(converted(Residual))["transitions"] == TRANSITIONS[Residual] | {
        "norm_down": ["conv2", "down"]}


def test_layers_in_float_are_passed_over():
    rules = [("convs.1", "float")]
    model = converted(PreActivation, rules=rules)
    assert describe(model)["transitions"] == TRANSITIONS[PreActivation] | {
        "norms.2": [None, "convs.0"], "norms.3": ["convs.0", "convs.2"]}
    assert describe(converted(rules=[("1", "float"), ("4", "float")]))["transitions"] == {"7": ["3", "6"]}


def test_without_an_example_the_order_of_registration_counts():
    assert describe(converted(example=None))["transitions"] == TRANSITIONS[chain]
    model = convert(chain(), BITS, keep_float=())
    assert describe(make_transitional(model))["transitions"] == TRANSITIONS[chain] | {
        "1": [None, "0"], "4": ["0", "3"]}


@pytest.mark.parametrize("own, keys", [
    ({}, {8: ("8,8", "8,8"), 2: ("2,2", "2,2")}),
    ({"3": 4}, {8: ("8,4", "4,8"), 2: ("2,4", "4,2")}),
    ({"3": 4, "6": 2}, {8: ("8,4", "4,2"), 2: ("2,4", "4,2")}),
], ids=str)
def test_the_norm_of_the_pair_in_use_is_trained(own, keys):
    model = trained(converted())
    set_layer_bits(model, own)
    for bits, expected in {**keys, 32: ("32", "32")}.items():
        set_bits(model.train(), bits)
        before = copy.deepcopy(model.state_dict())
        model(IMAGES).sum().backward()
        changed = {name for name, value in model.state_dict().items() if name.endswith("running_mean")
                   and not torch.equal(value, before[name])}
        assert changed == {f"1.by_bits.{bits}.running_mean",
                           *(f"{name}.by_pair.{key}.running_mean" for name, key in zip("47", expected, strict=True))}
        assert [model[place].key() for place in (4, 7)] == list(expected)
        assert all(model[4].by_pair[key].weight.grad is not None for key in expected[:1])
        model.zero_grad()


def test_the_float_path_is_the_float_network():
    network = trained(chain())
    expected = network(IMAGES)
    model = convert(network, BITS, batch_norm="transitional", example=IMAGES)
    set_layer_bits(model, {"3": 2})
    set_bits(model, 32)
    assert torch.equal(model(IMAGES), expected)


def test_what_one_bit_width_for_all_has_trained_carries_over(model):
    before = trained(converted(batch_norm="per_bit"))
    parameters = {id(parameter) for parameter in before.parameters()}
    model = make_transitional(copy.deepcopy(before), IMAGES)
    for bits in (*BITS, 32):
        for each in (before, model):
            set_bits(each, bits)
        assert torch.equal(model(IMAGES), before(IMAGES))
    for earlier, bits in product(BITS, BITS):
        pair, one = model[7].by_pair[f"{earlier},{bits}"], before[7].by_bits[str(bits)]
        assert all(torch.equal(value, pair.state_dict()[name]) for name, value in one.state_dict().items())
    make_transitional(before, IMAGES)
    assert parameters < {id(parameter) for parameter in before.parameters()}
    assert not parameters & {id(parameter) for parameter in before[7].by_pair["8,4"].parameters()}


def test_spread_gives_every_pair_what_one_bit_width_for_all_has(model):
    same = {b: copy.deepcopy(model[7].by_pair[f"{b},{b}"].state_dict()) for b in BITS}
    parameter = model[7].by_pair["8,4"].weight
    assert not torch.equal(parameter, same[4]["weight"])
    spread_batch_norms(model)
    for earlier, bits in product(BITS, BITS):
        state = model[7].by_pair[f"{earlier},{bits}"].state_dict()
        assert all(torch.equal(value, state[name]) for name, value in same[bits].items())
    assert model[7].by_pair["8,4"].weight is parameter and parameter.requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_that_run_again_use_the_same_norms(model, reentrant):
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        model.zero_grad()
        set_bits(model.train(), 8)
        set_layer_bits(model, {"3": 2})
        outputs = run(IMAGES.clone().requires_grad_())
        set_bits(model, 4)
        outputs.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()
                          if parameter.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "7.by_pair.2,8.weight" in gradients[0]
    assert all(map(torch.equal, gradients[0].values(), gradients[1].values()))


def test_compiled_networks_follow_the_configuration(model):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for bits, own in ((8, {"3": None}), (8, {"3": 2}), (4, {"3": 2})):
        set_bits(model, bits)
        set_layer_bits(model, own)
        assert torch.equal(compiled(IMAGES), model(IMAGES))


def test_statistics_are_adapted_for_the_configuration_in_use(model):
    set_layer_bits(model, {"3": 2})
    before = copy.deepcopy(model.state_dict())
    adapt_bn(model, 4, [IMAGES, IMAGES + 1])
    changed = {name.rpartition(".")[0] for name, value in model.state_dict().items() if "running" in name
               and not torch.equal(value, before[name])}
    assert changed == {"1.by_bits.4", "4.by_pair.4,2", "7.by_pair.2,4"}


def test_networks_without_norms_of_their_own_stay_as_they_are():
    model = convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), keep_float=(),
                    batch_norm="transitional")
    assert not any(isinstance(module, BitBatchNorm) for module in make_transitional(model).modules())
    shared = converted(batch_norm="shared")
    assert make_transitional(shared, IMAGES) is shared and type(shared[7]) is nn.BatchNorm2d
    with pytest.raises(ValueError, match="make_transitional: model must hold layers made by convert"):
        make_transitional(chain())
    with pytest.raises(TypeError, match="example must be a tensor"):
        make_transitional(shared, "text")


def test_the_nearest_pair_serves_bit_widths_that_were_not_trained():
    model = converted(weights=RoundClamp())
    for own, key in ((5, "8,4"), (7, "8,8"), (3, "8,4"), (1, "8,2")):
        set_layer_bits(model, {"3": own})
        assert model[4].key() == key and model(IMAGES).isfinite().all()


def test_it_shows_itself_and_the_norm_in_use(model):
    set_bits(model, 4)
    norm = model[7]
    assert isinstance(norm, TransitionalBatchNorm) and norm.weight is norm.by_pair["4,4"].weight
    assert norm.num_features == 4 and not hasattr(norm, "nothing") and not hasattr(norm, "by_bits")
    assert "TransitionalBatchNorm(\n  bits=4,4, one each for 8,8, 8,4, " in repr(norm)
