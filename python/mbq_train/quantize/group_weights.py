"""The weight quantizer with a learned scale for every group of weights of an output channel."""

import math
from functools import partial

import torch

import mbq_kernels

from .bits import BitState
from .data_parallel import averaged
from .quantizer import BaseWeightQuantizer, Codes, autocast_dtype
from .saved import remember
from .scaled_quantizer import ScaledQuantizer
from .units import first_scale


def fake_quantize_groups(x, scale, *, group_size, **options):
    """Return mbq_kernels.fake_quantize of x (C, ...), K elements in each of the C rows; scale: (C, K / group_size)."""
    x_hat = mbq_kernels.fake_quantize(x.flatten(1), scale, group_size=group_size, **options).view(x.shape)
    return remember(x_hat, partial(fake_quantize_groups, group_size=group_size, **options), x, scale)


class GroupWeightQuantizer(ScaledQuantizer, BaseWeightQuantizer):
    """Weights: signed, symmetric, one learned scale per group and bit-width.

    A group is `group_size` weights of one output channel that lie side by side: input features of a linear layer; of a
    convolution input channels and places in the kernel, as weight.flatten(1) has them. A scale starts as that of a
    WeightQuantizer does, at 2 mean|w| / sqrt(hi), of its group.

    Args:
        bit_state, weight, layer_name: as for WeightQuantizer.
        group_size: divides the number of weights of an output channel, K; scales are (C, K / group_size).

    Raises ValueError for a group_size that does not divide.
    """

    axis = None
    kernel = staticmethod(fake_quantize_groups)

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, group_size: int, layer_name: str = "layer"):
        columns = math.prod(weight.shape[1:])
        if columns % group_size:
            raise ValueError(f"{layer_name}: group_size must divide the {columns} weights of an output channel (weight "
                             f"of shape {tuple(weight.shape)}), got {group_size}; a rule of convert can give the layer "
                             "a scale per channel, {'weights': Learned()}, groups of another size, or leave it 'float'")
        super().__init__(bit_state, (weight.shape[0], columns // group_size), signed=True, layer_name=layer_name,
                         like=weight)
        self.group_size = group_size

    def extra_repr(self) -> str:
        return super().extra_repr().replace("per tensor", f"groups of {self.group_size}")

    def current(self) -> tuple[torch.Tensor, ...]:
        """Return (scale in units,) of the bit-width in use."""
        return super().current()[:1]

    def options(self) -> dict:
        return {"bits": self.bits, "signed": True, "group_size": self.group_size, **self.unit_and_floor()}

    def _first_values(self, weight, hi):
        groups = weight.abs().flatten(1).unflatten(1, (-1, self.group_size))
        return first_scale(groups.mean(dim=2), math.sqrt(hi) / 2), None

    @torch.no_grad()
    def codes(self, weight: torch.Tensor, bits: int) -> Codes:
        bits = self.bits_at(bits)
        self.check_initialised([bits])
        scale = self.scale(bits)
        codes = mbq_kernels.quantize_codes(weight.flatten(1), scale, bits=bits, group_size=self.group_size)
        return Codes(codes.view(weight.shape), scale.float(), None)

    def store_codes(self, weight: torch.Tensor, bits: int) -> Codes:
        """Raise ValueError: a store has scales per output channel alone."""
        raise ValueError(f"export_store: weights of {self.layer_name} must have a scale per output channel, which is "
                         f"what a store holds, got groups of {self.group_size}; convert with Learned() weights, or "
                         "write them with export_onnx")

    @staticmethod
    def quantize_all(quantizers, weights, bits) -> list:
        """Return every weight, quantized by its quantizer, one tensor per bit-width in `bits`, from one read of each
        weight."""
        outs = []
        for quantizer, weight in zip(quantizers, weights, strict=True):
            names = list(map(str, bits))
            every = mbq_kernels.fake_quantize_multi(
                weight.flatten(1), [averaged(quantizer.scales[b]) for b in names], bits=bits,
                group_size=quantizer.group_size, scale_units=[quantizer.scale_units[b] for b in names],
                scale_floors=[quantizer.scale_floors[b] for b in names], out_dtype=autocast_dtype(weight))
            outs.append([out.view(weight.shape) for out in every])
        return outs
