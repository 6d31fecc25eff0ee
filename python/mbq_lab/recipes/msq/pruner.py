"""Pruner: which layers lose how many bits, and when it is enough."""

import statistics
from collections.abc import Mapping


class Pruner:
    """The bit-widths of a network's layers on their way down to a compression.

    compression = 32 sum(params) / sum(bits * params) over the quantized layers, as in BSQ; layers in float are in
    neither sum.

    Args:
        parameters: elements of each layer's weight, by name.
        bits: the bit-width of each to begin with.
        target: the compression at which it is enough.
        threshold: alpha - a layer loses bits where a smaller share of its weights uses them.
        floor: the lowest bit-width.
    """

    def __init__(self, parameters: Mapping[str, int], bits: Mapping[str, int], *, target: float, threshold: float,
                 floor: int):
        self.parameters, self.bits = dict(parameters), dict(bits)
        self.target, self.threshold, self.floor = target, threshold, floor
        self.low_bits = {}
        self.set_sensitivities({})

    @property
    def compression(self) -> float:
        """Return the compression against float32."""
        stored = sum(self.bits[name] * count for name, count in self.parameters.items())
        return 32 * sum(self.parameters.values()) / stored

    @property
    def done(self) -> bool:
        """Return whether the target is reached, or every layer has its lowest bit-width."""
        return self.compression >= self.target or not self.low_bits

    def set_sensitivities(self, sensitivities: Mapping[str, float]) -> None:
        """Decide how many bits each layer may lose at once: 2 where it is less sensitive than the layers' average, else
        1; 1 for all without sensitivities; never below the floor. `low_bits` lacks layers that can lose none."""
        self.sensitivities = dict(sensitivities)
        average = statistics.fmean(self.sensitivities.values()) if self.sensitivities else 0.0
        wanted = {name: 2 if name in sensitivities and sensitivities[name] < average else 1 for name in self.bits}
        room = {name: bits - self.floor for name, bits in self.bits.items()}
        self.low_bits = {name: min(wanted[name], room[name]) for name in self.bits if room[name] > 0}

    def prune(self, rates: Mapping[str, float]) -> dict[str, int]:
        """Take their `low_bits` bits from the layers whose rate is below the threshold, the least sensitive first, as
        long as the target is not reached; the new bit-widths of those layers.

        rates: the share of a layer's weights whose `low_bits` last bits are in use.
        """
        ready = [name for name in self.low_bits if rates[name] < self.threshold]
        pruned = {}
        for name in sorted(ready, key=lambda name: self.sensitivities.get(name, 0.0)):
            for _ in range(self.low_bits[name]):
                if self.compression < self.target:
                    self.bits[name] -= 1
                    pruned[name] = self.bits[name]
        return pruned
