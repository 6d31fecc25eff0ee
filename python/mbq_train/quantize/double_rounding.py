"""The weight quantizer that learns one scale for all bit-widths and rounds the codes of the highest one again."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

import mbq_kernels

from .bits import BitState
from .data_parallel import averaged
from .learned import WeightQuantizer
from .quantizer import Codes, autocast_dtype
from .saved import remember
from .specs import WeightSpec, correction_option, option
from .units import first_scale

ROUNDINGS = ("half_even", "half_up")
LOWEST_BITS = 2  # at 1 bit the codes are -1 and +1: a code 0 has none


def corrected_double_round(x, scale, **options):
    """Return double_round of x, with the mean and deviation of x in every channel; a tuple for several bit-widths."""
    rounded = mbq_kernels.double_round(x, scale, **options)
    if isinstance(rounded, tuple):
        return tuple(mbq_kernels.correct_weight_bias(x_hat, x) for x_hat in rounded)
    return remember(mbq_kernels.correct_weight_bias(rounded, x), partial(corrected_double_round, **options), x, scale)


class DoubleRoundingQuantizer(WeightQuantizer):
    """Weights: signed, symmetric, one learned scale per output channel (axis 0), that of the highest trained bit-width.

    Lower bit-widths round its codes again (mbq_kernels.double_round), so that the codes of the highest bit-width are
    all that has to be stored (Huang et al., 2025, arXiv 2502.01199, eq. 1-3). scale starts at
    max(|mean - 3 std|, |mean + 3 std|) / 2^(h-1) of its channel, h bits, as in the paper's public code.

    Args:
        bit_state: the model's; its bit-widths are at least 2.
        weight: (C, ...), floating point - gives the number of channels, device and dtype.
        layer_name: what error messages call the layer.
        rounding: of the codes, 'half_even' (the paper's code) or 'half_up'.
        scale_chain: multiply the scale's gradient at b bits by 2^(h-b), the true derivative [off: as the code].
        shared_sum: every channel's scale gets the sum of all channels' gradients, as in the code [off: its own; our
            choice].
        correction: as for WeightQuantizer. No store holds a correction, because it differs between bit-widths.
    """

    switchable = True
    kernel = staticmethod(mbq_kernels.double_round)
    corrected_kernel = staticmethod(corrected_double_round)

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str = "layer",
                 rounding: str = "half_even", scale_chain: bool = False, shared_sum: bool = False,
                 correction: bool = False):
        self._check(layer_name, bit_state.trained)
        super().__init__(bit_state, weight, layer_name=layer_name, correction=correction)
        self.rounding, self.scale_chain, self.shared_sum = rounding, scale_chain, shared_sum

    @property
    def high_bits(self) -> int:
        return self.bit_state.trained[0]

    def kept_at(self, bits: int) -> int:
        return self.high_bits

    def add(self, bit_widths) -> list[int]:
        """Return nothing: every bit-width from 2 to the highest is in the codes. Raises ValueError for others."""
        self._check(self.layer_name, bit_widths, self.high_bits)
        return []

    def options(self) -> dict:
        return {**self._common(), "bits": self.bits}

    def current(self) -> tuple[torch.Tensor, ...]:
        """Return (scale in units,), the same at all bit-widths."""
        scale = averaged(self._pick(self.scales))
        if self.shared_sum:  # the same values; a change of one scale counts as one of all, whatever their units
            unit = self._pick(self.scale_units)
            scale = scale.detach() + ((scale - scale.detach()) / unit).sum() * unit
        return (scale,)

    def _common(self) -> dict:
        return {"high_bits": self.high_bits, "axis": self.axis, "rounding": self.rounding,
                "scale_chain": self.scale_chain, **self.unit_and_floor()}

    def _first_values(self, weight, hi):
        weight = weight.flatten(1)
        mean, deviation = weight.mean(dim=1), weight.std(dim=1, correction=min(1, weight.shape[1] - 1))
        reach = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs())
        return first_scale(reach, hi + 1), None

    @torch.no_grad()
    def codes(self, weight: torch.Tensor, bits: int) -> Codes:
        """Return the codes of the highest bit-width, rounded again to `bits` bits, or to the layer's own. Raises as
        WeightQuantizer, and ValueError with a weight correction."""
        if self.correction:
            raise ValueError(f"export: {self.layer_name} must have no weight correction, which differs between "
                             "bit-widths and codes that are rounded twice do not have, got it on; convert without "
                             "correction, or with Learned() weights")
        self.check_initialised([self.high_bits])
        bits = self.bits_at(bits)
        x, scale, *_ = self.stored(weight, self.high_bits)
        codes = mbq_kernels.quantize_codes(x, scale, bits=self.high_bits, axis=0)
        if bits < self.high_bits:
            codes = mbq_kernels.switch_bits(codes, from_bits=self.high_bits, to_bits=bits, rounding=self.rounding)
        return Codes(codes, scale.float() * 2.0 ** (self.high_bits - bits), None)

    def stored_bits(self, bits: int | None) -> int:
        """Return the highest bit-width, which all others are read from, or the layer's own."""
        return self.own_bits or self.high_bits

    def check_own_bits(self, bits: int) -> None:
        """Raise ValueError unless the codes hold `bits` bits."""
        self._check(f"set_layer_bits: {self.layer_name}", (bits,), self.high_bits)

    @staticmethod
    def quantize_all(quantizers, weights, bits) -> list:
        """Return what WeightQuantizer's does, from one read of each weight."""
        return [quantizer.kernel(weight, *quantizer.current(), **quantizer._common(), bits=bits,
                                 out_dtype=autocast_dtype(weight))
                for quantizer, weight in zip(quantizers, weights, strict=True)]

    @staticmethod
    def _check(layer_name: str, bit_widths, highest: int = 8) -> None:
        for b in bit_widths:
            if not LOWEST_BITS <= b <= highest:
                raise ValueError(f"{layer_name}: bits must be between {LOWEST_BITS} and {highest} where weights are "
                                 f"rounded twice, got {b}")


@dataclass(frozen=True)
class DoubleRounding(WeightSpec):
    """One learned scale per channel, and codes of the highest bit-width that are rounded again to every lower one.

    Args:
        rounding: of the codes, 'half_even' (the paper's code) or 'half_up', with which bit planes are read in part.
        scale_chain: multiply the scale's gradient at b bits by 2^(h-b), the true derivative [off: as the code].
        shared_sum: every channel's scale gets the sum of all channels' gradients, as in the code [off: its own].
        correction: as for Learned; a network with it can be neither exported nor deployed.

    Bit-widths are at least 2: at 1 bit the codes are -1 and +1, and a code 0 has none.

    Reference: Huang et al., "Double Rounding", 2025, arXiv 2502.01199.
    """

    name: ClassVar[str] = "double-rounding"
    rounding: str = option("half_even", "how codes are rounded again", of="weights", choices=ROUNDINGS)
    scale_chain: bool = option(False, "scale gradients times 2^D, the true derivative", of="weights")
    shared_sum: bool = option(False, "all scales of a layer get the sum of their gradients", of="weights")
    correction: bool = correction_option()

    def check(self, bits: tuple[int, ...]) -> None:
        if bits[-1] < LOWEST_BITS:
            raise ValueError(f"convert: bits must be at least {LOWEST_BITS} with DoubleRounding weights: at 1 bit a "
                             f"code 0 has no sign, got {bits}")

    def weight_quantizer(self, bit_state: BitState, weight: torch.Tensor, *,
                         layer_name: str) -> DoubleRoundingQuantizer:
        return DoubleRoundingQuantizer(bit_state, weight, layer_name=layer_name, rounding=self.rounding,
                                       scale_chain=self.scale_chain, shared_sum=self.shared_sum,
                                       correction=self.correction)
