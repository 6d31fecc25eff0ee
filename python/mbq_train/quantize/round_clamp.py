"""The weight quantizer without a learned scale, whose layers may each have a bit-width of their own."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

import mbq_kernels

from .bits import FLOAT, BitState, check_bit_widths
from .quantizer import BaseWeightQuantizer, Codes, autocast_dtype, weight_quantizer_of
from .saved import remember
from .specs import WeightSpec, option

NORMALISATIONS, FORMS = ("max", "tanh"), ("offset", "sign-magnitude")


def round_clamp(x: torch.Tensor, *, bits: int, form: str = "offset") -> torch.Tensor:
    """Return mbq_kernels.round_clamp of a tensor with its own largest value as the limit, a constant to autograd."""
    return mbq_kernels.round_clamp(x, bits=bits, limit=largest(x), form=form)


def largest(x: torch.Tensor) -> torch.Tensor:
    """Return max|x|, a constant to autograd."""
    return torch.linalg.vector_norm(x.detach(), math.inf)


class RoundClampQuantizer(BaseWeightQuantizer):
    """Weights: round-clamp by max|W| (Han et al., 2025, arXiv 2507.22349), in one of the two forms of
    mbq_kernels.round_clamp.

    n is the bit-width in use or the layer's own (`set_layer_bits`), which the state_dict holds. A weight of 0 stays 0;
    the maximum is a constant to autograd, and nothing is learned. Before it is rounded to W's dtype a value is, in
    training and in eval mode, the product of a signed code and a scale that a store has, bit for bit.

    Args:
        bit_state: the model's.
        weight: (C, ...), floating point.
        layer_name: what error messages call the layer.
        normalise: 'max', or 'tanh': tanh(W) takes the place of W.
        form: 'offset', codes -2^(n-1) to 2^(n-1) - 1 and a scale of max|W| 2^(1-n); or 'sign-magnitude', codes to
            2^n - 1 on both sides and a scale of max|W| / (2^n - 1), at 1 bit ternary.
    """

    kernel = staticmethod(round_clamp)
    sets_inputs = False  # the bit-widths are those of weights

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str = "layer",
                 normalise: str = "max", form: str = "offset"):
        super().__init__(bit_state, signed=True, layer_name=layer_name)
        self.normalise, self.form = normalise, form

    def add(self, bit_widths) -> list[int]:
        """Return nothing; raise ValueError where the layer has a bit-width of its own."""
        if self.own_bits and bit_widths:
            raise ValueError(f"{self.layer_name}: bits must be left alone where a layer has a bit-width of its own, "
                             f"{self.own_bits}, got {', '.join(map(str, bit_widths))}")
        return []

    def check_own_bits(self, bits: int) -> None:
        """Raise ValueError unless bits is in 1..8: nothing is kept of a bit-width."""
        check_bit_widths("set_layer_bits", (bits,))

    def normalised(self, weight: torch.Tensor) -> torch.Tensor:
        """Return what is quantized: the weight or its tanh."""
        return weight.tanh() if self.normalise == "tanh" else weight

    def code_bits(self, bits: int) -> int:
        """Return how many bits signed codes at `bits` bits take: one more where the sign is kept apart."""
        return self.bits_at(bits) + (self.form == "sign-magnitude")

    @torch.no_grad()
    def codes(self, weight: torch.Tensor, bits: int) -> Codes:
        """Return signed codes at `bits` bits, or at the layer's own bit-width, and one scale for all channels.

        Raises ValueError at 8 bits in the sign-magnitude form, whose codes, to 255, int8 does not hold.
        """
        bits = self.bits_at(bits)
        if self.code_bits(bits) > 8:
            raise ValueError(f"{self.layer_name}: bits must be at most 7 to store codes of the form 'sign-magnitude', "
                             f"because int8 holds no larger ones, got {bits}")
        x = self.normalised(weight).float()
        limit = largest(x)
        steps = 2.0 ** (bits - 1) if self.form == "offset" else 2.0**bits - 1
        scale = limit / torch.full_like(limit, steps)  # divided by a number, CUDA multiplies by 1 / number
        value = mbq_kernels.round_clamp(x, bits=bits, limit=limit, form=self.form)
        codes = (value / scale).round().nan_to_num_(0)  # NaN: nothing but zeros, and a scale of 0
        scale = torch.where(scale == 0, 1, scale).expand(len(codes)).contiguous()
        return Codes(codes.to(torch.int8), scale, None)

    def store_codes(self, weight: torch.Tensor, bits: int) -> Codes:
        """Return what `codes` does, at 1 bit 0 and 1 with an offset in place of -1 and 0, which no store holds."""
        codes, scale, _ = self.codes(weight, bits)
        if self.code_bits(bits) > 1:
            return Codes(codes, scale, None)
        return Codes((codes + 1).to(torch.uint8), scale, -scale)

    def options(self) -> dict:
        return {"bits": self.bits, "form": self.form}

    def _quantize(self, weight):
        if self.bit_state.bits == FLOAT:
            return weight
        function = partial(self._value, bits=self.bits, dtype=autocast_dtype(weight) or weight.dtype)
        return remember(function(weight), function, weight)

    def _value(self, weight, *, bits: int, dtype: torch.dtype) -> torch.Tensor:
        return round_clamp(self.normalised(weight), bits=bits, form=self.form).to(dtype)


def round_clamp_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of `model` with a RoundClampQuantizer, by name."""
    return {name: module for name, module in model.named_modules()
            if isinstance(weight_quantizer_of(module), RoundClampQuantizer)}


@dataclass(frozen=True)
class RoundClamp(WeightSpec):
    """No scale to learn: the largest weight of a layer is the limit, and `set_layer_bits` gives layers their bit-width.

    Args:
        normalise: 'max', by the largest weight; 'tanh', tanh of the weights by its largest.
        form: of the codes, as for RoundClampQuantizer.

    Reference: Han et al., "MSQ", 2025, arXiv 2507.22349.
    """

    name: ClassVar[str] = "round-clamp"
    normalise: str = option("max", "weights by their largest, or their tanh by its largest", of="weights",
                            choices=NORMALISATIONS)
    form: str = option("offset", "codes around that of 0, or codes of |W| with the sign kept apart", of="weights",
                       choices=FORMS)

    def weight_quantizer(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str) -> RoundClampQuantizer:
        return RoundClampQuantizer(bit_state, weight, layer_name=layer_name, normalise=self.normalise, form=self.form)
