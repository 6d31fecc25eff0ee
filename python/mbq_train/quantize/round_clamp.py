"""The weight quantizer without a learned scale, whose layers may each have a bit-width of their own."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

import mbq_kernels

from .bits import FLOAT, BitState, check_bit_widths
from .flags import one_of_all
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
    _watched = "layer_bits"

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str = "layer",
                 normalise: str = "max", form: str = "offset"):
        super().__init__(bit_state, signed=True, layer_name=layer_name)
        self.normalise, self.form = normalise, form
        # Floating point, because averages of models average their buffers too; 0: none.
        self.register_buffer("layer_bits", torch.zeros((), device=weight.device))

    @property
    def own_bits(self) -> int | None:
        """Return the layer's own bit-width, None where it has none."""
        self._look()
        return self._own_bits

    @own_bits.setter
    def own_bits(self, bits: int | None) -> None:
        self._own_bits = bits

    def _read(self) -> None:
        bits, = one_of_all(self.layer_name, self.layer_bits.reshape(1))
        if bits != int(bits):
            raise RuntimeError(f"{self.layer_name}: layer_bits must be an integer, got {bits:g}, as of an average over "
                               "a training that changed it")
        self._own_bits = int(bits) or None

    def add(self, bit_widths) -> list[int]:
        """Return nothing; raise ValueError where the layer has a bit-width of its own."""
        if self.own_bits and bit_widths:
            raise ValueError(f"{self.layer_name}: bits must be left alone where a layer has a bit-width of its own, "
                             f"{self.own_bits}, got {', '.join(map(str, bit_widths))}")
        return []

    def set_own_bits(self, bits: int) -> None:
        """Compute at `bits` bits from now on, whatever the model's bit-width; at 32 stay in float."""
        self.layer_bits.fill_(bits)
        self._look()  # now: compiled graphs do not

    def normalised(self, weight: torch.Tensor) -> torch.Tensor:
        """Return what is quantized: the weight or its tanh."""
        return weight.tanh() if self.normalise == "tanh" else weight

    def code_bits(self, bits: int) -> int:
        """Return how many bits signed codes at `bits` bits take: one more where the sign is kept apart."""
        return (self.own_bits or bits) + (self.form == "sign-magnitude")

    def stored_bits(self, bits: int | None) -> int | None:
        """Return the layer's own bit-width where it has one."""
        return self.own_bits or bits

    @torch.no_grad()
    def codes(self, weight: torch.Tensor, bits: int) -> Codes:
        """Return signed codes at `bits` bits, or at the layer's own bit-width, and one scale for all channels.

        Raises ValueError at 8 bits in the sign-magnitude form, whose codes, to 255, int8 does not hold.
        """
        bits = self.stored_bits(bits)
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


def set_layer_bits(model: nn.Module, bits: dict[str, int]) -> None:
    """Give layers of `model` a weight bit-width of their own, whatever `set_bits` says; at 32 bits they stay in float.

    Args:
        model: what `convert` returned with RoundClamp weights, or a module that contains it.
        bits: 1..8, by the name of the layer in `model`.

    Raises TypeError, ValueError for a name that is no such layer and a bit-width out of range; nothing is changed then.
    """
    layers = round_clamp_layers(model)
    for name, b in bits.items():
        if name not in layers:
            raise ValueError(f"set_layer_bits: bits must name layers with a RoundClampQuantizer, got {name!r}")
        check_bit_widths("set_layer_bits", (b,))
    for name, b in bits.items():
        layers[name].weight_quantizer.set_own_bits(b)


def own_layer_bits(model: nn.Module) -> dict[str, int]:
    """Return what `set_layer_bits` has given to layers of `model`, by their names."""
    own = {name: layer.weight_quantizer.own_bits for name, layer in round_clamp_layers(model).items()}
    return {name: bits for name, bits in own.items() if bits}


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
