"""The weight quantizer without a learned scale, whose layers may each have a bit-width of their own."""

import math

import torch
from torch import nn

import mbq_kernels

from .bits import FLOAT, BitState, check_bit_widths
from .fake_quantizer import autocast_dtype
from .quantizers import WeightQuantizer

NORMALISATIONS = ("max", "tanh")


def round_clamp(x: torch.Tensor, *, bits: int) -> torch.Tensor:
    """mbq_kernels.round_clamp of a tensor with its own largest value as the limit, a constant to autograd."""
    return mbq_kernels.round_clamp(x, bits=bits, limit=largest(x))


def largest(x: torch.Tensor) -> torch.Tensor:
    """max|x|, a constant to autograd."""
    return torch.linalg.vector_norm(x.detach(), math.inf)


class RoundClampQuantizer(WeightQuantizer):
    """Weights: round-clamp on u = W / (2 max|W|) + 1/2 (Han et al., 2025, arXiv 2507.22349).

    code = min(rint(2^n u), 2^n - 1), n the bit-width in use or the layer's own (`set_layer_bits`), which the state_dict
    holds. A weight of 0 stays 0; the maximum is a constant to autograd, and nothing is learned. In eval
    mode the value is code * scale + offset, bit for bit that of a store; in training it is mbq_kernels.round_clamp's,
    which rounds otherwise: before both are rounded to W's dtype they differ by at most 2^-22 max|W|.

    Args:
        bit_state: the model's.
        weight: (C, ...), floating point.
        layer_name: what error messages call the layer.
        normalise: 'max', or 'tanh': tanh(W) takes the place of W.
    """

    kernel = staticmethod(round_clamp)

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str = "layer",
                 normalise: str = "max"):
        super().__init__(bit_state, weight, layer_name=layer_name)
        self.normalise = normalise
        self.register_buffer("layer_bits", torch.zeros((), dtype=torch.int64, device=weight.device))  # 0: none
        self.register_load_state_dict_post_hook(_read_layer_bits)

    def kept(self) -> list[int]:
        """None: nothing is learned."""
        return []

    def add(self, bit_widths) -> list[int]:
        """Nothing. Raises ValueError where the layer has a bit-width of its own."""
        if self.own_bits and bit_widths:
            raise ValueError(f"{self.layer_name}: bits must be left alone where a layer has a bit-width of its own, "
                             f"{self.own_bits}, got {', '.join(map(str, bit_widths))}")
        return []

    def set_own_bits(self, bits: int) -> None:
        """Compute at `bits` bits from now on, whatever the model's bit-width; but for 32."""
        self.own_bits = bits
        self.layer_bits.fill_(bits)

    def normalised(self, weight: torch.Tensor) -> torch.Tensor:
        """What is quantized: the weight or its tanh."""
        return weight.tanh() if self.normalise == "tanh" else weight

    @torch.no_grad()
    def encode(self, weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(codes, scale, offset): uint8 codes of `bits` bits; a weight is code * scale + offset."""
        x = self.normalised(weight).float()
        limit, top = largest(x), 2**bits - 1
        value = mbq_kernels.round_clamp(x, bits=bits, limit=limit)
        middle = 2 ** (bits - 1)
        codes = (value / limit * (top / 2)).round().nan_to_num_(0) + middle  # NaN: nothing but zeros, and a limit of 0
        scale = torch.where(limit == 0, 1, 2 * limit / top)
        return codes.to(torch.uint8), scale, -middle * scale

    def options(self) -> dict:
        return {"bits": self.bits}

    def current(self) -> tuple:
        """Nothing: no scale, no offset."""
        return ()

    def _quantize(self, weight):
        if self.bit_state.bits == FLOAT:
            return weight
        x = self.normalised(weight)
        if self.training:
            value = round_clamp(x, bits=self.bits)
        else:
            codes, scale, offset = self.encode(weight, self.bits)
            value = codes * scale + offset + (x - x.detach())
        return value.to(autocast_dtype(weight) or weight.dtype)

    @staticmethod
    def quantize_all(quantizers, weights, bits) -> list:
        """As that of WeightQuantizer; a layer's own bit-width serves all `bits`."""
        return [[round_clamp(quantizer.normalised(weight), bits=quantizer.own_bits or b).to(
            autocast_dtype(weight) or weight.dtype) for b in bits]
            for quantizer, weight in zip(quantizers, weights, strict=True)]


def set_layer_bits(model: nn.Module, bits: dict[str, int]) -> None:
    """Give layers of `model` a weight bit-width of their own, whatever `set_bits` says; at 32 bits they stay in float.

    Args:
        model: what `convert` returned with quantizer 'round-clamp', or a module that contains it.
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
    """What `set_layer_bits` has given to layers of `model`, by their names."""
    own = {name: layer.weight_quantizer.own_bits for name, layer in round_clamp_layers(model).items()}
    return {name: bits for name, bits in own.items() if bits}


def round_clamp_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` with a RoundClampQuantizer, by name."""
    return {name: module for name, module in model.named_modules()
            if isinstance(getattr(module, "weight_quantizer", None), RoundClampQuantizer)}


def _read_layer_bits(quantizer: RoundClampQuantizer, incompatible_keys) -> None:
    quantizer.own_bits = int(quantizer.layer_bits) or None
