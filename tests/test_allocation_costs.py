"""What a bit-width costs a layer, and how many products it takes: by formula."""

import pytest
import torch
from networks import one_thread, small_network  # noqa: F401
from torch import nn

from mbq_train import (
    DoubleRounding,
    RoundClamp,
    Trace,
    allocate,
    convert,
    get_bits,
    hessian_costs,
    hessian_traces,
    loss_costs,
    multiply_accumulates,
    own_layer_bits,
    perturbations,
    set_bits,
    set_layer_bits,
    tied_layers,
    trace_costs,
)

BITS = (8, 6, 4, 2)


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


TWICE = DoubleRounding()


def network(images, weights=TWICE):
    return convert(small_network(), BITS, weights=weights, batch_norm="shared", example=images).eval()


TRACES = {"3": Trace(4.0, 0.1, 216), "7": Trace(0.5, 0.1, 480)}


@pytest.mark.parametrize("weights", [DoubleRounding(), RoundClamp()], ids=lambda spec: spec.name)
def test_costs_by_the_hessian_are_those_of_uniform_models(images, weights):
    model = network(images, weights)
    set_layer_bits(model, {"3": 4})
    set_bits(model, 32)
    costs = hessian_costs(model, TRACES, BITS)
    assert own_layer_bits(model) == {"3": 4} and get_bits(model) == 32
    set_layer_bits(model, {"3": None})
    for b in BITS:
        set_bits(model, b)
        errors = perturbations(model)
        assert all(costs[name][b] == TRACES[name].mean * errors[name] for name in TRACES)
    found = allocate(costs, {name: trace.parameters for name, trace in TRACES.items()}, mean_bits=4)
    set_layer_bits(model, found.bits)
    assert own_layer_bits(model) == found.bits


def test_costs_by_the_loss_are_what_it_grows_by(images):
    model, labels = network(images), torch.tensor([0, 1, 2, 0, 1, 2])
    costs = loss_costs(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], BITS)

    def loss():
        return nn.functional.cross_entropy(model(images), labels).item()

    set_layer_bits(model, {"3": 8, "7": 8})
    base = loss()
    for name in ("3", "7"):
        for b in BITS:
            set_layer_bits(model, {"3": 8, "7": 8, name: b})
            assert costs[name][b] == pytest.approx(loss() - base, abs=1e-6)


def test_traces_alone_give_sensitive_layers_the_bits():
    costs = trace_costs({"a": Trace(10.0, 0.1, 10), "b": Trace(1.0, 0.1, 10)}, (8, 2))
    assert allocate(costs, {"a": 10, "b": 10}, mean_bits=5).bits == {"a": 8, "b": 2}


def test_products_are_counted_by_the_formula(images):
    model = network(images)
    assert multiply_accumulates(model, images) == {"3": 6 * 6 * 4 * 4 * 4 * 9, "7": 6 * 5 * 96}
    grouped = convert(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, groups=2, stride=2), nn.Flatten(),
                                    nn.Linear(72, 2)), (8,), example=images)
    assert multiply_accumulates(grouped, images) == {"1": 6 * 8 * 9 * 2 * 9}


@pytest.mark.parametrize("call, error, message", [
    (lambda model, x: hessian_costs(model, {"3": TRACES["3"]}, BITS), ValueError, "traces must be those of .* got 7"),
    (lambda model, x: hessian_costs(model, TRACES | {"3": Trace(float("nan"), 0, 1)}, BITS), ValueError,
     "traces must be finite, got nan for 3"),
    (lambda model, x: hessian_costs(model, TRACES, (8, 5)), ValueError, None),
    (lambda model, x: loss_costs(model, [], BITS), ValueError, "batches must hold samples, got none"),
    (lambda model, x: trace_costs({}, BITS), ValueError, "traces must name layers, got none"),
    (lambda model, x: multiply_accumulates(model, "x"), TypeError, "example must be a tensor"),
    (lambda model, x: multiply_accumulates(small_network(), x), ValueError, "model must hold layers made by convert"),
])
def test_bad_input_of_costs_is_named(images, call, error, message):
    model = network(images, TWICE if message else RoundClamp())
    if message is None:  # every bit-width can be had
        call(model, images)
        return
    with pytest.raises(error, match=message):
        call(model, images)
    assert own_layer_bits(model) == {}


def test_negative_traces_count_as_nothing_with_a_warning(images):
    with pytest.warns(RuntimeWarning, match="hessian_costs: traces of 3 are negative"):
        costs = hessian_costs(network(images), TRACES | {"3": Trace(-1.0, 0.1, 216)}, BITS)
    assert set(costs["3"].values()) == {0.0} and costs["7"][2] > 0


class Tied(nn.Module):
    """Four linear layers, of which the two in the middle have one weight."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
        self.layers[2].weight = self.layers[1].weight

    def forward(self, x):
        return self.layers(x)


def test_costs_of_one_weight_are_shared_out():
    x, labels = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    model = convert(Tied(), BITS, example=x).eval()
    assert tied_layers(model) == [("layers.1", "layers.2")]
    traces = hessian_traces(model, [(x, labels)], probes=2)
    traces = dict.fromkeys(traces, Trace(64.0, 0.1, 64))
    model(x)
    assert trace_costs(traces, (8, 2), tied=tied_layers(model)) == dict.fromkeys(traces, {8: -4.0, 2: -1.0})
    set_bits(model, 2)
    model(x)
    errors, costs = perturbations(model), hessian_costs(model, traces, (8, 2))
    assert {name: of_layer[2] for name, of_layer in costs.items()} == {name: e / 2 for name, e in errors.items()}
    measured = loss_costs(model, [(x, labels)], (8, 2))
    assert measured["layers.1"] == measured["layers.2"] and own_layer_bits(model) == {}
    set_layer_bits(model, {"layers.1": 8, "layers.2": 8})
    base = nn.functional.cross_entropy(model(x), labels)
    set_layer_bits(model, {"layers.1": 2, "layers.2": 2})
    more = (nn.functional.cross_entropy(model(x), labels) - base).item()
    assert sum(of_layer[2] for of_layer in measured.values()) == pytest.approx(more, abs=1e-6)
