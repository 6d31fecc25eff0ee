"""One BatchNorm for every pair of bit-widths: of the layer before, and of the layer that is normalised."""

import copy
import pickle
from itertools import product

import pytest
import torch
from networks import one_thread  # noqa: F401
from torch import nn
from torch.utils.checkpoint import checkpoint

from mbq_train import (
    BitBatchNorm,
    DoubleRounding,
    RoundClamp,
    TransitionalBatchNorm,
    adapt_bn,
    add_bits,
    at_bits,
    convert,
    load_quantized,
    make_transitional,
    plan_conversion,
    save_checkpoint,
    set_bits,
    set_layer_bits,
    spread_batch_norms,
)
from mbq_train.conversion.description import describe, described_conversion
from mbq_train.export.one_bit_width import at_one_bit_width

BITS = (8, 4, 2)
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                         nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


class Residual(nn.Module):
    """Registers everything in another order than it calls it; the shortcut is called last."""

    def __init__(self):
        super().__init__()
        self.norm_down, self.down = nn.BatchNorm2d(6), nn.Conv2d(4, 6, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(4, 6, 3, padding=1)
        self.norm3, self.conv3 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.stem, self.norm0, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(6, 2)

    def forward(self, x):
        x = self.norm0(self.stem(x)).relu()
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        out = (out + self.norm_down(self.down(x))).relu_()
        return self.head(self.norm3(self.conv3(out)).mean((2, 3)))


class PreActivation(nn.Module):
    """Norms before the layers: that of a sum follows what was called last of all that reaches the sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for first in (0, 2):
            inside = self.convs[first](self.norms[first](x).relu())
            x = x + self.convs[first + 1](self.norms[first + 1](inside).relu())
        return self.head(self.norms[4](x).mean((2, 3)))


TRANSITIONS = {
    chain: {"4": [None, "3"], "7": ["3", "6"]},
    Residual: {"norm1": [None, "conv1"], "norm2": ["conv1", "conv2"], "norm_down": [None, "down"],
               "norm3": ["down", "conv3"]},
    PreActivation: {"norms.1": [None, "convs.0"], "norms.2": ["convs.0", "convs.1"], "norms.3": ["convs.1", "convs.2"],
                    "norms.4": ["convs.2", "convs.3"]},
}


def converted(make=chain, **options):
    torch.manual_seed(0)
    options = {"weights": DoubleRounding(), "batch_norm": "transitional", "example": IMAGES} | options
    return convert(make(), BITS, **options)


def trained(model):
    """Give every BatchNorm statistics of its own, the same for the same network."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_()
                module.weight.uniform_(0.5, 1.5)
    return model.eval()


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


def mixed_outputs(model):
    found = []
    for bits, own in product(BITS, ({"3": 8, "6": None}, {"3": 2, "6": 4}, {"3": None, "6": None})):
        set_bits(model, bits)
        set_layer_bits(model, own)
        found.append(model(IMAGES))
    return found


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


def test_untrained_bit_widths_of_layers_are_an_error():
    model = converted(weights=RoundClamp())
    set_layer_bits(model, {"3": 5})
    with pytest.raises(RuntimeError, match="TransitionalBatchNorm: bit-widths of the layers before it must be trained "
                                           "ones, of 8, 4, 2, got 8,5"):
        model(IMAGES)


def test_it_shows_itself_and_the_norm_in_use(model):
    set_bits(model, 4)
    norm = model[7]
    assert isinstance(norm, TransitionalBatchNorm) and norm.weight is norm.by_pair["4,4"].weight
    assert norm.num_features == 4 and not hasattr(norm, "nothing") and not hasattr(norm, "by_bits")
    assert "TransitionalBatchNorm(\n  bits=4,4, one each for 8,8, 8,4, " in repr(norm)
