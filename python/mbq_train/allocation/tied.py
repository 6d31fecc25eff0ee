"""Layers that share one weight: they have one bit-width, and the weight is stored once."""

import math
from collections.abc import Collection, Iterable, Mapping

from torch import nn

from ..quantize.layers import weight_layers


def tied_layers(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the names of the quantized layers of `model` that share one weight Parameter, group by group."""
    groups: dict[int, list[str]] = {}
    for name, layer in weight_layers(model).items():
        if layer.weight is not None:  # None: stored as codes
            groups.setdefault(id(layer.weight), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def leaders_of(function: str, layers: Collection[str], tied: Iterable[Iterable[str]]) -> dict[str, str]:
    """Return for each of `layers` the first of its group in `tied`, itself where it is in none."""
    leaders = {layer: layer for layer in layers}
    seen: set[str] = set()
    for group in map(tuple, tied):
        for layer in group:
            if layer not in leaders or layer in seen:
                what = "a second time" if layer in seen else "which is no layer"
                raise ValueError(f"{function}: tied must name each layer once, got {layer!r} {what}")
            seen.add(layer)
            leaders[layer] = group[0]
    return leaders


def summed(table: Mapping[str, Mapping[int, float]], leaders: Mapping[str, str]) -> dict[str, dict[int, float]]:
    """Return {leader: {bits: the sum over its group}}."""
    groups: dict[str, list[str]] = {}
    for layer in table:
        groups.setdefault(leaders[layer], []).append(layer)
    return {leader: {b: math.fsum(table[layer][b] for layer in group) for b in table[leader]}
            for leader, group in groups.items()}
