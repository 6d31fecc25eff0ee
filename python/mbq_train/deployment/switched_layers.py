"""Linear and convolution layers whose weight is stored as integer codes and used at the bit-width of a BitState."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mbq_kernels import switched_linear

from ..quantize.own_bits import OwnBits
from .stored_weight import dequantize, store_weight

MANY_ROWS = 256  # of an input, from which on a dequantized weight is cheaper than reading the codes for every few rows


class Workspace:
    """Memory for one dequantized weight at a time, as large as the largest, shared by the layers of a network."""

    def __init__(self):
        self.memory = None

    def take(self, shape, like: torch.Tensor) -> torch.Tensor:
        """Return an uninitialised tensor of `shape` in the dtype and on the device of `like`; the previous one is lost.

        New memory where something would still need the previous one: autograd, or a compiler that plans by itself.
        """
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and like.requires_grad):
            return like.new_empty(shape)
        size = math.prod(shape)
        old = self.memory
        if old is None or old.numel() < size or (old.dtype, old.device) != (like.dtype, like.device):
            self.memory = None  # free before the new one is made
            self.memory = like.new_empty(size)
        return self.memory[:size].view(shape)

    def __getstate__(self):
        return {"memory": None}


class _SwitchedLayer(OwnBits):
    """What the stored layers share: the store, and how it is made from a layer with a DoubleRoundingQuantizer.

    They compute at the bit-width of their BitState, or at their own (`set_layer_bits`).
    """

    kept = ()  # attributes of the trained layer that its forward needs

    @classmethod
    def from_quantized(cls, layer: nn.Module, *, layout: str = "codes", workspace: Workspace | None = None):
        """Return the stored form of `layer`, which computes at the bit-width of the same BitState, or at the layer's
        own.

        Args:
            layer: QuantLinear, QuantConv1d or QuantConv2d whose weight quantizer has `stored`, `high_bits` and
                `rounding`, as a DoubleRoundingQuantizer has.
            layout: 'codes', a byte a weight; 'planes', as much, of which lower bit-widths read a part.
            workspace: for the dequantized weight [one of its own].
        """
        quantizer = layer.weight_quantizer
        quantizer.check_initialised([quantizer.high_bits])
        weight, scale, *_ = quantizer.stored(layer.weight_by_channel(), quantizer.high_bits)
        stored = cls(quantizer.bit_state, layer_name=quantizer.layer_name)
        stored.set_weight(weight, scale, layer.bias, high_bits=quantizer.high_bits, rounding=quantizer.rounding,
                          layout=layout)
        stored.layer_bits = quantizer.layer_bits.clone()
        stored.input_quantizer, stored.workspace = layer.input_quantizer, workspace or Workspace()
        for name in cls.kept:
            setattr(stored, name, getattr(layer, name))
        return stored.train(layer.training)

    @torch.no_grad()
    def set_weight(self, weight, scale, bias, *, high_bits: int, rounding: str, layout: str = "codes") -> None:
        """Store `weight` (C, ...) as codes of `high_bits` bits with `scale` (C,), and `bias` (C,) or None as it is."""
        self.register_buffer("store", store_weight(weight, scale, high_bits=high_bits, layout=layout))
        self.register_buffer("scale", scale.detach().float().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.weight_shape, self.high_bits, self.rounding = tuple(weight.shape), high_bits, rounding

    def _apply(self, fn, recurse=True):
        """Do what .to(), .half() and the like do: the scale stays in float32."""
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self

    def check_own_bits(self, bits: int) -> None:
        """Raise ValueError unless the codes hold `bits` bits."""
        if not 2 <= bits <= self.high_bits:
            raise ValueError(f"set_layer_bits: bits of {self.layer_name} must be between 2 and {self.high_bits}, which "
                             f"its codes have, got {bits}")

    def bits_in_use(self) -> int:
        """Return the bit-width in use; ValueError for 32."""
        bits = self.bit_state.bits if self.bit_state.bits > self.high_bits else self.bits
        if bits > self.high_bits:
            raise ValueError(f"{self.layer_name}: bits must be between 2 and {self.high_bits}, got {bits}: "
                             "a deployed network keeps no other weights than the codes")
        return bits

    def weight_at(self, bits: int, like: torch.Tensor) -> torch.Tensor:
        """Return the weight at `bits` bits in the dtype and on the device of `like`; good until the next call."""
        out = self.workspace.take((self.weight_shape[0], math.prod(self.weight_shape[1:])), like)
        return dequantize(self.store, self.scale, high_bits=self.high_bits, bits=bits, rounding=self.rounding,
                          columns=out.shape[1], out=out).view(self.weight_shape)

    def extra_repr(self) -> str:
        layout = "codes" if self.store.dtype == torch.int8 else "planes"
        return f"{self.weight_shape}, {layout} of {self.high_bits} bits, rounding={self.rounding}"


class SwitchedLinear(_SwitchedLayer):
    """QuantLinear from stored codes, read as they are: y = x_hat @ w_hat(bits).T + bias.

    For more than 256 rows of x the weight is dequantized into the workspace, and torch multiplies; not in what
    torch.export makes, which serves any number of rows.
    """

    def forward(self, x):
        x, bits = self.input_quantizer(x), self.bits_in_use()
        if not torch.compiler.is_exporting() and math.prod(x.shape[:-1]) > MANY_ROWS:
            return F.linear(x, self.weight_at(bits, x), None if self.bias is None else self.bias.to(x.dtype))
        return switched_linear(x, self.store, self.scale, self.bias, high_bits=self.high_bits, bits=bits,
                               rounding=self.rounding)


class _SwitchedConv(_SwitchedLayer):
    kept = ("stride", "padding", "dilation", "groups", "padding_mode", "_reversed_padding_repeated_twice")

    def forward(self, x):
        x = self.input_quantizer(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self.conv_forward(self, x, self.weight_at(self.bits_in_use(), x), bias)


class SwitchedConv1d(_SwitchedConv):
    """QuantConv1d from stored codes; its weight is dequantized into a workspace that other layers use too."""

    conv_forward = staticmethod(nn.Conv1d._conv_forward)


class SwitchedConv2d(_SwitchedConv):
    """QuantConv2d from stored codes; its weight is dequantized into a workspace that other layers use too."""

    conv_forward = staticmethod(nn.Conv2d._conv_forward)


