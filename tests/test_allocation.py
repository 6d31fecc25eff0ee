"""allocate: the cheapest bit-widths within limits, as trying every configuration finds them."""

import itertools
import random
import time

import pytest

from mbq_train import allocate, other_allocations, pareto_allocations

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


@pytest.mark.parametrize("seed", [4, 5, 7, 8, 9, 11, 12, 14])
def test_costs_of_any_magnitude_add_up_to_the_least(seed):
    """HiGHS looks at absolute differences: the smallest costs decide where the largest are in no good configuration."""
    draw = random.Random(seed)
    costs, sizes, options = problem(seed)
    costs = {name: {b: 10.0 ** draw.uniform(-9, 9) * 4.0**-b for b in BITS} for name in costs}
    found = allocate(costs, sizes, **options)
    assert met(found, options) and found.cost == pytest.approx(by_trying(costs, sizes, options), rel=1e-9)


def test_limits_that_sums_in_another_order_reach_can_be_had():
    latency = {f"l{i}": {4: 0.1 * (i + 1) / 3, 2: 0.1 * (i + 1) / 3} for i in range(9)}
    most = sum(of_layer[4] for of_layer in reversed(latency.values())) * (1 - 1e-15)
    found = allocate({name: {4: 0.0, 2: 1.0} for name in latency}, dict.fromkeys(latency, 1), latency=latency,
                     max_latency=most)
    assert set(found.bits.values()) == {4} and found.latency > most


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
    (GOOD, SIZES, {"forced": {"a": 4, "b": 2}, "tied": [("a", "b")]}, ValueError, "forced must give tied layers one"),
    (GOOD, SIZES, {"tied": [("a", "c")]}, ValueError, "tied must name each layer once, got 'c' which is no layer"),
    (GOOD, SIZES, {"tied": [("a", "b"), ("b",)]}, ValueError, "tied must name each layer once, got 'b' a second time"),
    ([GOOD], SIZES, {}, TypeError, "costs must be a mapping by layer, got list"),
    (GOOD, [10, 30], {}, TypeError, "sizes must be a mapping by layer, got list"),
    ({"a": 1.0, "b": 2.0}, SIZES, {}, TypeError, r"costs must be {layer: {bits: number}}, got float for a"),
    (GOOD, SIZES, {"latency": {"a": 1.0, "b": 1.0}}, TypeError, "latency must be {layer: {bits: number}}, got float"),
    (GOOD, SIZES, {"operations": [1, 2]}, TypeError, "operations must be a mapping by layer, got list"),
    (GOOD, {"a": 10.5, "b": 30}, {}, TypeError, "sizes of a must be an integer, got 10.5"),
    (GOOD, SIZES, {"bits": 4}, TypeError, "bits must be a sequence of integers, got 4"),
    (GOOD, SIZES, {"bits": (4.5, 2)}, TypeError, "bits must be an integer, got 4.5"),
    ({"a": {4: 1.0}, "b": {2: 1.0}}, SIZES, {}, ValueError, "costs must have one bit-width that all layers share"),
    (GOOD, SIZES, {"operations": {"a": 1, "b": 1}, "input_bits": "8"}, TypeError, "input_bits must be a number"),
    (GOOD, SIZES, {"operations": {"a": 1, "b": 1}, "input_bits": -1}, ValueError, "input_bits must be .* at least 1"),
    (GOOD, SIZES, {"mean_bits": 2.5, "max_latency": 3, "latency": {name: {4: 1.0, 2: 9.0} for name in "ab"}},
     ValueError, "all can hold at once, as mean_bits .*, max_latency .* do, got mean_bits 2.5"),
])
def test_bad_input_is_named(costs, sizes, options, error, message):
    with pytest.raises(error, match=f"^allocate: .*{message}"):
        allocate(costs, sizes, **options)


def test_layers_with_one_weight_have_one_bit_width_and_count_once():
    costs = {"a": {8: 0.0, 2: 5.0}, "b": {8: 0.0, 2: 3.0}, "c": {8: 0.0, 2: 7.0}}
    sizes, options = {"a": 100, "b": 100, "c": 100}, {"operations": {"a": 1, "b": 2, "c": 4}, "tied": [("b", "a")]}
    found = allocate(costs, sizes, mean_bits=5, **options)
    assert found.bits == {"a": 8, "b": 8, "c": 2} and found.cost == 7
    assert (found.mean_bits, found.bytes, found.bit_operations) == (5, 125, 64 * 3 + 4 * 4)
    assert found.binding == ("mean_bits",)
    assert allocate(costs, sizes, forced={"a": 2}, **options).bits == {"a": 2, "b": 2, "c": 8}
    assert [one.bits["a"] == one.bits["b"] for one in other_allocations(costs, sizes, count=9, **options)] == [True] * 3
