"""Activations whose range is measured in the call that quantizes them: nothing is learned and nothing kept."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

import mbq_kernels

from .bits import FLOAT, BitState, check_bit_widths
from .quantizer import Quantizer, autocast_dtype
from .saved import remember
from .specs import ActivationSpec, option

RANGES = ("token",)


def fake_quantize_tokens(x: torch.Tensor, *, bits: int, symmetric: bool, out_dtype: torch.dtype | None = None):
    """Return mbq_kernels.fake_quantize_dynamic of x with codes of `bits` bits, in `out_dtype` [x's]."""
    if x.shape[-1] == 0:
        return x if out_dtype is None else x.to(out_dtype)
    lo, hi = token_range(bits, symmetric)
    x_hat, *_ = mbq_kernels.fake_quantize_dynamic(x, quant_min=lo, quant_max=hi, symmetric=symmetric)
    return x_hat if out_dtype is None else x_hat.to(out_dtype)


def token_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the lowest and the highest code; at 1 bit too they are two neighbours, because a zero point comes on top.

    symmetric: without the lowest code of `bits` bits, so that the scale is max|x| / hi. With it the largest element
    would lie midway between two codes.
    """
    hi = 2 ** (bits - 1) - 1
    return -hi if symmetric else -hi - 1, hi


class DynamicQuantizer(Quantizer):
    """Activations: a scale and a zero point for every token, all elements of the last axis, from its own extremes
    (mbq_kernels.fake_quantize_dynamic, which states the arithmetic).

    Training and eval are the same computation; there is nothing to initialise, and no batch has an effect on another.
    The range is a constant to autograd.

    Args:
        bit_state: the model's.
        symmetric: codes -hi to hi, hi = 2^(bits - 1) - 1, and a scale of max|x| / hi, from 2 bits on; otherwise the
            range of the 2^bits codes is that of the token, and 0 in it.
        own_bits: compute at this bit-width, whatever the model's; None: at the model's, or what `set_layer_bits` gave.
        layer_name: what error messages call the layer.
    """

    dynamic = True
    kernel = staticmethod(fake_quantize_tokens)

    def __init__(self, bit_state: BitState, *, symmetric: bool = False, own_bits: int | None = None,
                 layer_name: str = "layer"):
        super().__init__(bit_state, signed=True, layer_name=layer_name, own_bits=own_bits)
        self.symmetric = symmetric
        self._check(layer_name, [own_bits] if own_bits else bit_state.trained)

    def extra_repr(self) -> str:
        bits, *_ = super().extra_repr().split(", signed")
        return f"{bits}, {'symmetric' if self.symmetric else 'asymmetric'}, range per token"

    def options(self) -> dict:
        return {"bits": self.bits, "symmetric": self.symmetric}

    def _quantize(self, x):
        if self.bit_state.bits == FLOAT:
            return x
        function = partial(self.kernel, **self.options(), out_dtype=autocast_dtype(x))
        return remember(function(x), function, x)

    def add(self, bit_widths) -> list[int]:
        """Return nothing: every bit-width is there. Raises ValueError for 1 bit with a symmetric range."""
        if not self.fixed_bits:
            self._check(self.layer_name, bit_widths)
        return []

    def check_own_bits(self, bits: int) -> None:
        """Raise ValueError unless bits is in 1..8, with a symmetric range in 2..8: nothing is kept of a bit-width."""
        check_bit_widths("set_layer_bits", (bits,))
        self._check(f"set_layer_bits: {self.layer_name}", [bits])

    def _check(self, name: str, bit_widths) -> None:
        if self.symmetric and 1 in bit_widths:
            raise ValueError(f"{name}: bits must be at least 2 where the range of inputs is symmetric, because 1 bit "
                             "leaves no code but 0, got 1")


@dataclass(frozen=True)
class Dynamic(ActivationSpec):
    """No scales: the range of inputs is measured in every call, for each token by itself.

    For layers whose input has its features in the last axis, as Linear, attention projections and transformers' Conv1D
    have; convolutions need another spec, because their last axis is one of places.

    Args:
        per: what has a range of its own: 'token', all elements of the last axis.
        bits: their bit-width, 1..8, whatever that of the weights [None: the one in use].
        symmetric: from -max|x| to max|x| with as many codes on both sides of 0, for bit-widths of 2 and more [off: from
            min(x, 0) to max(x, 0), bit for bit what torchao 0.18's IntxFakeQuantizer gives per token].
    """

    name: ClassVar[str] = "dynamic"
    per: str = option("token", "what has a range of its own", of="activations", choices=RANGES, flag="")
    bits: int | None = option(None, "of activations, whatever the weights have; 0: as the weights, 32: float",
                              of="activations", flag="activation_bits")
    symmetric: bool = option(False, "dynamic: ranges of activations lie evenly around 0", of="activations")

    def __post_init__(self):
        super().__post_init__()
        if self.bits is not None:
            check_bit_widths("Dynamic", (self.bits,))

    def input_quantizer(self, bit_state: BitState, *, like: torch.Tensor, layer_name: str) -> DynamicQuantizer:
        if like.dim() != 2:
            raise ValueError(f"{layer_name}: activations must be Learned() or Float() for a convolution, whose last "
                             "axis holds no features, got Dynamic(); a rule of convert gives it another, as "
                             "(nn.Conv2d, {'activations': Learned()})")
        return DynamicQuantizer(bit_state, symmetric=self.symmetric, own_bits=self.bits, layer_name=layer_name)
