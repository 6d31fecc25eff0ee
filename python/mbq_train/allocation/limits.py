"""Limits of an allocation: what each layer takes of them at each bit-width, and whether anything meets them."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .tied import summed

_ROUNDING = 1e-12  # of a limit that was computed as a sum in another order


@dataclass(frozen=True)
class Limit:
    """At most `most` in all, None for no limit; takes: {layer: {bits: what it takes}}; name: of the argument."""

    name: str
    takes: dict[str, dict[int, float]]
    most: float | None

    def total(self, bits: Mapping[str, int]) -> float:
        """Return what layers at `bits` take together."""
        return math.fsum(self.takes[layer][b] for layer, b in bits.items())

    def allows(self, bits: Mapping[str, int]) -> bool:
        """Return whether layers at `bits` are within the limit, up to the rounding of a sum."""
        return self.most is None or self.total(bits) <= self.most * (1 + _ROUNDING)

    def together(self, leaders: Mapping[str, str]) -> "Limit":
        """Return the limit of groups of tied layers, by the first of each."""
        return replace(self, takes=summed(self.takes, leaders))

    def least(self, choices: Mapping[str, tuple[int, ...]]) -> float:
        """Return the least that layers can take together."""
        return math.fsum(min(self.takes[layer][b] for b in of_layer) for layer, of_layer in choices.items())


def limits_of(sizes: Mapping[str, int], choices: Mapping[str, tuple[int, ...]], *, mean_bits, max_bytes, operations,
              input_bits, max_bit_operations, latency, max_latency) -> list[Limit]:
    """Return the limits that are given, and those that are known without a limit. Arguments as of `allocate`."""
    elements = sum(sizes.values())
    limits = [_limit("mean_bits", mean_bits, choices, lambda layer, b: sizes[layer] * b / elements),
              _limit("max_bytes", max_bytes, choices, lambda layer, b: sizes[layer] * b / 8)]
    for name, most, source, known in (("max_bit_operations", max_bit_operations, "operations", operations),
                                      ("max_latency", max_latency, "latency", latency)):
        if known is None:
            if most is not None:
                raise ValueError(f"allocate: {name} must come with {source}, got {most} alone")
            continue
        check_mapping(source, known)
        for layer in sorted(known.keys() ^ choices.keys()):
            where = "costs" if layer in known else source
            raise ValueError(f"allocate: {source} must name the layers of costs, got {layer}, which is not in {where}")
        limits.append(_limit(name, most, choices, _bit_operations(operations, input_bits) if source == "operations"
                             else _latency(latency)))
    return limits


def check_feasible(limits: list[Limit], choices: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError, with the nearest value that can be had, where a limit alone is too low."""
    for limit in limits:
        least = limit.least(choices)
        if limit.most is not None and least > limit.most * (1 + _ROUNDING):
            raise ValueError(f"allocate: {limit.name} must be at least {least:.10g}, the least that these layers can "
                             f"have, got {limit.most:.10g}, {least - limit.most:.4g} too few")


def check_mapping(name: str, value) -> None:
    """Raise TypeError for what is no mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"allocate: {name} must be a mapping by layer, got {type(value).__name__}")


def check_table(name: str, value) -> None:
    """Raise TypeError for what is not {layer: {bits: number}}."""
    check_mapping(name, value)
    for layer, of_layer in value.items():
        if not isinstance(of_layer, Mapping):
            raise TypeError(f"allocate: {name} must be {{layer: {{bits: number}}}}, got {type(of_layer).__name__} for "
                            f"{layer}")


def check_count(name: str, value) -> None:
    """Raise TypeError for what is no integer, ValueError for one below 1."""
    check_number(name, value, least=1)
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"allocate: {name} must be an integer, got {value!r}")


def check_number(name: str, value, *, least: float = -math.inf) -> None:
    """Raise TypeError for what is no real number, ValueError for one that is not finite or below `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"allocate: {name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < least:
        at_least = "" if least == -math.inf else f" and at least {least:g}"
        raise ValueError(f"allocate: {name} must be finite{at_least}, got {value!r}")


def _limit(name: str, most, choices, takes) -> Limit:
    if most is not None:
        check_number(name, most, least=0)
    return Limit(name, {layer: {b: float(takes(layer, b)) for b in of_layer} for layer, of_layer in choices.items()},
                 most)


def _bit_operations(operations: Mapping[str, float], input_bits: int | None):
    if input_bits is not None:
        check_count("input_bits", input_bits)
    for layer, count in operations.items():
        check_number(f"operations of {layer}", count, least=0)
    return lambda layer, b: operations[layer] * b * (b if input_bits is None else input_bits)


def _latency(latency: Mapping[str, Mapping[int, float]]):
    check_table("latency", latency)

    def takes(layer: str, b: int) -> float:
        if b not in latency[layer]:
            raise ValueError(f"allocate: latency must have {b} bits for every layer, got none for {layer}")
        check_number(f"latency of {layer} at {b} bits", latency[layer][b], least=0)
        return latency[layer][b]
    return takes
