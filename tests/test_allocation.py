"""allocate: the cheapest bit-widths within limits, as trying every configuration finds them."""

import itertools
import random
import time

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
    loss_costs,
    multiply_accumulates,
    other_allocations,
    own_layer_bits,
    pareto_allocations,
    perturbations,
    set_bits,
    set_layer_bits,
    trace_costs,
)

BITS = (8, 6, 4, 2)


def problem(seed, layers=5, bits=BITS):
    """Return (costs, sizes, options with up to four limits that something meets), of whole numbers."""
    draw = random.Random(seed)
    names = [f"layer{i}" for i in range(layers)]
    costs = {name: {b: float(draw.randint(-20, 60)) for b in bits} for name in names}
    sizes = {name: draw.randint(1, 50) for name in names}
    operations = {name: draw.randint(0, 90) for name in names}
    latency = {name: {b: float(draw.randint(1, 30)) for b in bits} for name in names}
    some = {name: draw.choice(bits) for name in names}
    limits = {"mean_bits": sum(sizes[name] * b for name, b in some.items()) / sum(sizes.values()),
              "max_bytes": sum(sizes[name] * b for name, b in some.items()) / 8 + draw.choice((0, 7)),
              "max_bit_operations": sum(operations[name] * b * b for name, b in some.items()),
              "max_latency": sum(latency[name][b] for name, b in some.items())}
    options = {name: limits[name] for name in draw.sample(list(limits), draw.randint(1, 4))}
    return costs, sizes, options | {"operations": operations, "latency": latency}


def met(allocation, options) -> bool:
    reached = {"mean_bits": allocation.mean_bits, "max_bytes": allocation.bytes,
               "max_bit_operations": allocation.bit_operations, "max_latency": allocation.latency}
    return all(reached[name] <= most * (1 + 1e-12) for name, most in options.items() if name in reached)


def by_trying(costs, sizes, options) -> float:
    """The least cost of all configurations within the limits."""
    best = None
    for chosen in itertools.product(*(of_layer for of_layer in costs.values())):
        bits = dict(zip(costs, chosen, strict=True))
        taken = {"mean_bits": sum(sizes[name] * b for name, b in bits.items()) / sum(sizes.values()),
                 "max_bytes": sum(sizes[name] * b for name, b in bits.items()) / 8,
                 "max_bit_operations": sum(options["operations"][name] * b * b for name, b in bits.items()),
                 "max_latency": sum(options["latency"][name][b] for name, b in bits.items())}
        if all(taken[name] <= most for name, most in options.items() if name in taken):
            cost = sum(costs[name][b] for name, b in bits.items())
            best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_costs_as_little_as_the_best_of_all_configurations(seed):
    costs, sizes, options = problem(seed)
    found = allocate(costs, sizes, **options)
    assert met(found, options) and found.cost == by_trying(costs, sizes, options)
    assert found.cost == sum(costs[name][b] for name, b in found.bits.items())
    assert found == allocate(costs, sizes, **options)


def test_without_limits_every_layer_has_its_cheapest_bit_width():
    costs, sizes, _ = problem(1)
    found = allocate(costs, sizes)
    assert found.bits == {name: min(of_layer, key=of_layer.get) for name, of_layer in costs.items()}
    assert found.binding == () and found.bit_operations is None and found.latency is None
    assert set(allocate(costs, sizes, bits=(4, 2)).bits.values()) <= {4, 2}


def test_binding_limits_are_those_that_forbid_a_higher_bit_width():
    costs = {name: {b: -float(b) for b in BITS} for name in "ab"}
    found = allocate(costs, {"a": 8, "b": 8}, mean_bits=5, max_bytes=1000)
    assert sorted(found.bits.values()) in ([2, 8], [4, 6]) and found.mean_bits == 5 and found.binding == ("mean_bits",)


def test_other_allocations_are_different_and_no_cheaper():
    costs, sizes, options = problem(3)
    every = other_allocations(costs, sizes, count=50, **options)
    assert every[0].cost == allocate(costs, sizes, **options).cost and len(every) > 2
    assert len({tuple(one.bits.values()) for one in every}) == len(every)
    assert [one.cost for one in every] == sorted(one.cost for one in every) and all(met(one, options) for one in every)
    assert other_allocations(costs, sizes, count=2, **options) == every[:2]
    held = other_allocations(costs, sizes, count=50, forced={"layer0": 4}, mean_bits=6)
    assert {one.bits["layer0"] for one in held} == {4}


def test_the_pareto_front_costs_less_with_every_bit_more():
    costs, sizes, _ = problem(4)
    front = pareto_allocations(costs, sizes, mean_bits=[1, 2, 2.5, 3, 4, 5, 6, 7, 8])  # 1 cannot be had
    assert len(front) > 2
    for before, after in itertools.pairwise(front):
        assert after.mean_bits > before.mean_bits and after.cost < before.cost


def test_224_layers_and_7_bit_widths_take_less_than_a_second():
    draw = random.Random(0)
    costs = {f"l{i}": {b: draw.lognormvariate(0, 2) * 4.0**-b for b in range(8, 1, -1)} for i in range(224)}
    sizes = {name: draw.randint(1000, 10**7) for name in costs}
    operations = {name: size * draw.randint(1, 200) for name, size in sizes.items()}
    allocate(costs, sizes, mean_bits=8)  # imports
    for options in ({"mean_bits": 3.0}, {"mean_bits": 4.1, "operations": operations,
                                         "max_bit_operations": 20 * sum(operations.values())}):
        start = time.process_time()
        allocate(costs, sizes, **options)
        assert time.process_time() - start < 1


GOOD = {"a": {4: 1.0, 2: 2.0}, "b": {4: 3.0, 2: 4.0}}
SIZES = {"a": 10, "b": 30}


@pytest.mark.parametrize("costs, sizes, options, error, message", [
    ({}, {}, {}, ValueError, "costs must name layers, got none"),
    (GOOD, {"a": 10}, {}, ValueError, "costs and sizes must name the same layers, got b in one alone"),
    (GOOD, {"a": 10, "b": 0}, {}, ValueError, "sizes of b must be finite and at least 1, got 0"),
    ({**GOOD, "b": {4: float("nan"), 2: 0.0}}, SIZES, {}, ValueError, "costs of b at 4 bits must be finite, got nan"),
    ({**GOOD, "b": {4: "1", 2: 0.0}}, SIZES, {}, TypeError, "costs of b at 4 bits must be a number, got '1'"),
    (GOOD, SIZES, {"bits": (2, 4)}, ValueError, r"bits must go from high to low without repeats, got \(2, 4\)"),
    (GOOD, SIZES, {"bits": (4, 4)}, ValueError, r"without repeats, got \(4, 4\)"),
    (GOOD, SIZES, {"bits": (8, 4)}, ValueError, "costs must have 8 bits for every layer, got none for a"),
    (GOOD, SIZES, {"mean_bits": 1.5}, ValueError, "mean_bits must be at least 2, .* got 1.5, 0.5 too few"),
    (GOOD, SIZES, {"max_bytes": 9}, ValueError, "max_bytes must be at least 10, .* got 9, 1 too few"),
    (GOOD, SIZES, {"max_bytes": float("nan")}, ValueError, "max_bytes must be finite"),
    (GOOD, SIZES, {"mean_bits": "3"}, TypeError, "mean_bits must be a number, got '3'"),
    (GOOD, SIZES, {"max_bit_operations": 9}, ValueError, "max_bit_operations must come with operations, got 9 alone"),
    (GOOD, SIZES, {"max_latency": 9}, ValueError, "max_latency must come with latency"),
    (GOOD, SIZES, {"latency": {"a": {4: 1, 2: 1}}}, ValueError, "latency must name the layers of costs, got b"),
    (GOOD, SIZES, {"latency": {name: {4: 1.0, 2: 1.0} for name in "abc"}}, ValueError, "got c, which is not in costs"),
    (GOOD, SIZES, {"latency": {"a": {4: 1.0}, "b": {4: 1.0, 2: 1.0}}}, ValueError, "latency must have 2 bits .* for a"),
    (GOOD, SIZES, {"operations": {"a": -1, "b": 1}}, ValueError, "operations of a must be finite and at least 0"),
    (GOOD, SIZES, {"forced": {"c": 4}}, ValueError, "forced must give layers one of their bit-widths, got 4 for 'c'"),
    (GOOD, SIZES, {"mean_bits": 2.5, "max_latency": 3, "latency": {name: {4: 1.0, 2: 9.0} for name in "ab"}},
     ValueError, "all can hold at once, as mean_bits .*, max_latency .* do, got mean_bits 2.5"),
])
def test_bad_input_is_named(costs, sizes, options, error, message):
    with pytest.raises(error, match=f"^allocate: .*{message}"):
        allocate(costs, sizes, **options)


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
