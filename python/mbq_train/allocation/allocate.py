"""allocate: the bit-widths of layers with the least cost within limits, by integer linear programming."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .limits import Limit, check_count, check_feasible, check_mapping, check_number, check_table, limits_of
from .solver import solve
from .tied import leaders_of, summed

Costs = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Allocation:
    """A bit-width for every layer, and what it comes to.

    bits: by layer, as `set_layer_bits` takes them; cost: the sum of the layers' costs; mean_bits: per weight; bytes: of
    the weights' codes; bit_operations, latency: None where nothing was said of them; binding: the limits that forbid
    the next higher bit-width of some layer.
    """

    bits: dict[str, int]
    cost: float
    mean_bits: float
    bytes: float
    bit_operations: float | None = None
    latency: float | None = None
    binding: tuple[str, ...] = ()


def allocate(costs: Costs, sizes: Mapping[str, int], *, bits: Iterable[int] | None = None,
             mean_bits: float | None = None, max_bytes: float | None = None,
             operations: Mapping[str, float] | None = None, input_bits: int | None = None,
             max_bit_operations: float | None = None, latency: Costs | None = None, max_latency: float | None = None,
             forced: Mapping[str, int] | None = None, tied: Iterable[Iterable[str]] = ()) -> Allocation:
    """Return the bit-widths of layers whose costs add up to the least, within all limits that are given.

    One variable of 0 or 1 for every layer and bit-width, solved by scipy.optimize.milp (HiGHS); the same arguments give
    the same result.

    Args:
        costs: {layer: {bits: cost}}, of `hessian_costs`, `loss_costs`, `trace_costs` or your own; smaller is better.
        sizes: elements of each layer's weight.
        bits: the bit-widths to choose from, from high to low [those that all layers have a cost for].
        mean_bits: at most so many bits a weight.
        max_bytes: at most so many bytes for the codes of all weights.
        operations: multiply-accumulates of each layer, of `multiply_accumulates`.
        input_bits: the bit-width of all inputs, for bit-operations [that of the layer's weight].
        max_bit_operations: at most so many: the sum of operations x bits of the weight x bits of the input.
        latency: {layer: {bits: seconds}}, as measured.
        max_latency: at most so many seconds in all.
        forced: layers that have this bit-width whatever it costs.
        tied: groups of layers that share one weight, of `tied_layers`: a group has one bit-width, its costs, operations
            and latencies add up, and the weight counts once.

    Raises:
        ValueError: no layers; layers that one mapping has and another lacks; a cost that is no finite number; sizes
        below 1; tied or forced layers that are none; bits repeated, ascending, or without a cost; a limit without what
        it is computed from; limits that nothing meets, with the nearest that something does. TypeError: a value that is
        no number, a table that is no mapping. ImportError: scipy is not installed.

    Reference: Dong et al., "HAWQ-V2", 2019, arXiv 1911.03852; Yao et al., "HAWQ-V3", 2021, arXiv 2011.10680; Huang et
    al., 2025, arXiv 2502.01199, which prints minimise for its sum of traces times bits: that would starve sensitive
    layers.
    """
    choices = _choices(costs, sizes, bits)
    leaders = leaders_of("allocate", costs.keys(), tied)
    sizes = {layer: size if leaders[layer] == layer else 0 for layer, size in sizes.items()}
    limits = [limit.together(leaders) for limit in
              limits_of(sizes, choices, mean_bits=mean_bits, max_bytes=max_bytes, operations=operations,
                        input_bits=input_bits, max_bit_operations=max_bit_operations, latency=latency,
                        max_latency=max_latency)]
    open_choices = _forced(choices, forced or {}, leaders)
    check_feasible(limits, open_choices)
    together = summed({layer: {b: costs[layer][b] for b in choices[layer]} for layer in costs}, leaders)
    found = solve({layer: {b: together[layer][b] for b in of_layer} for layer, of_layer in open_choices.items()},
                  [limit for limit in limits if limit.most is not None])
    totals = {limit.name: limit.total(found) for limit in limits}
    stored = sum(sizes[layer] * b for layer, b in found.items())
    return Allocation({layer: found[leaders[layer]] for layer in costs},
                      math.fsum(together[layer][b] for layer, b in found.items()), stored / sum(sizes.values()),
                      stored / 8, totals.get("max_bit_operations"), totals.get("max_latency"),
                      _binding(found, limits, choices))


def other_allocations(costs: Costs, sizes: Mapping[str, int], *, count: int, **options: Any) -> list[Allocation]:
    """Return up to `count` different allocations, the cheapest first: that of `allocate`, and those in which one layer
    is forced to another bit-width than it has there, as in the public code of arXiv 2502.01199.

    options: as of `allocate`. Raises as `allocate`.
    """
    check_count("count", count)
    options = _kept(options)
    best = allocate(costs, sizes, **options)
    forced = dict(options.pop("forced", None) or {})
    found = {tuple(best.bits.values()): best}
    for layer, chosen in best.bits.items():
        for b in costs[layer] if layer not in forced else ():
            if b == chosen or (options.get("bits") is not None and b not in tuple(options["bits"])):
                continue
            try:
                other = allocate(costs, sizes, **options, forced={**forced, layer: b})
            except ValueError:  # nothing within the limits has this layer at b
                continue
            found.setdefault(tuple(other.bits.values()), other)
    return sorted(found.values(), key=lambda allocation: allocation.cost)[:count]


def pareto_allocations(costs: Costs, sizes: Mapping[str, int], *, mean_bits: Iterable[float],
                       **options: Any) -> list[Allocation]:
    """Return the allocations at several mean bit-widths, from low to high, of which none has both fewer bits and a
    smaller cost than another.

    options: as of `allocate`, without mean_bits; limits that cannot be met at some of them leave those out. Raises as
    `allocate`, where none can be met.
    """
    if not isinstance(mean_bits, Iterable):
        raise TypeError(f"allocate: mean_bits must be a sequence of numbers, got {mean_bits!r}")
    mean_bits, options = list(mean_bits), _kept(options)
    for most in mean_bits:
        check_number("mean_bits", most)
    found, last = [], None
    for most in sorted(mean_bits):
        try:
            found.append(allocate(costs, sizes, mean_bits=most, **options))
        except ValueError as error:
            last = error
    if not found:
        raise last if last is not None else ValueError("pareto_allocations: mean_bits must not be empty, got nothing")
    front = []
    for allocation in sorted(found, key=lambda allocation: (allocation.mean_bits, allocation.cost)):
        if not front or allocation.cost < front[-1].cost:
            front.append(allocation)
    return front


def _kept(options: dict[str, Any]) -> dict[str, Any]:
    """Return options that can be read several times."""
    once = {name: tuple(map(tuple, value)) if name == "tied" else tuple(value) for name, value in options.items()
            if name in ("tied", "bits") and isinstance(value, Iterable) and not isinstance(value, str)}
    return options | once


def _choices(costs: Costs, sizes: Mapping[str, int], bits: Iterable[int] | None) -> dict[str, tuple[int, ...]]:
    """Return the bit-widths that each layer can have, from high to low, once costs and sizes are right."""
    check_table("costs", costs)
    check_mapping("sizes", sizes)
    if not costs:
        raise ValueError("allocate: costs must name layers, got none")
    for layer in sorted(costs.keys() ^ sizes.keys()):
        raise ValueError(f"allocate: costs and sizes must name the same layers, got {layer} in one alone")
    wanted = _bit_widths(costs, bits)
    for layer, of_layer in costs.items():
        for b in wanted:
            if b not in of_layer:
                raise ValueError(f"allocate: costs must have {b} bits for every layer, got none for {layer}")
            check_number(f"costs of {layer} at {b} bits", of_layer[b])
        check_count(f"sizes of {layer}", sizes[layer])
    return dict.fromkeys(costs, wanted)


def _bit_widths(costs: Costs, bits: Iterable[int] | None) -> tuple[int, ...]:
    if bits is None:
        bits = sorted(set.intersection(*(set(of_layer) for of_layer in costs.values())), reverse=True)
        if not bits:
            raise ValueError("allocate: costs must have one bit-width that all layers share, got none")
    if isinstance(bits, str) or not isinstance(bits, Iterable):
        raise TypeError(f"allocate: bits must be a sequence of integers, got {bits!r}")
    wanted = tuple(bits)
    for b in wanted:
        check_count("bits", b)
    if not wanted or any(low >= high for high, low in pairwise(wanted)):
        raise ValueError(f"allocate: bits must go from high to low without repeats, got {wanted}")
    return wanted


def _forced(choices: dict[str, tuple[int, ...]], forced: Mapping[str, int],
            leaders: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return the bit-widths that each leader can have."""
    check_mapping("forced", forced)
    found = {layer: of_layer for layer, of_layer in choices.items() if leaders[layer] == layer}
    for layer, b in forced.items():
        if layer not in choices or b not in choices[layer]:
            raise ValueError(f"allocate: forced must give layers one of their bit-widths, got {b!r} for {layer!r}")
        if b not in found[leaders[layer]]:
            raise ValueError(f"allocate: forced must give tied layers one bit-width, got {b} for {layer!r} and "
                             f"{found[leaders[layer]][0]} for another")
        found[leaders[layer]] = (b,)
    return found


def _binding(bits: dict[str, int], limits: list[Limit], choices: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the limits that forbid the next higher bit-width of some layer."""
    higher = {layer: min((other for other in choices[layer] if other > b), default=None) for layer, b in bits.items()}
    return tuple(limit.name for limit in limits
                 if any(b is not None and not limit.allows(bits | {layer: b}) for layer, b in higher.items()))
