"""Learned scales of weights and activations: one for every bit-width."""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch

import mbq_kernels

from .. import distributed
from .bits import BitState, check_bit_widths, code_range
from .data_parallel import averaged
from .group_weights import GroupWeightQuantizer
from .quantizer import BaseWeightQuantizer, autocast_dtype
from .scaled_quantizer import ScaledQuantizer
from .specs import ActivationSpec, WeightSpec, correction_option, option
from .units import first_scale


class WeightQuantizer(ScaledQuantizer, BaseWeightQuantizer):
    """Weights: signed, symmetric, one learned scale per output channel (axis 0) and bit-width.

    scale starts at 2 mean|w| / sqrt(hi) of its channel (Esser et al., 2020, arXiv 1902.08153, section 2.1).

    Args:
        bit_state: the model's.
        weight: (C, ...), floating point - gives the number of channels, device and dtype.
        layer_name: what error messages call the layer.
        correction: give every channel of the quantized weight the mean and deviation that it has in float, at every
            bit-width, so that one BatchNorm can serve all of them (Kim et al., 2025, arXiv 2510.20673).
    """

    corrected_kernel = staticmethod(mbq_kernels.fake_quantize_corrected)

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str = "layer",
                 correction: bool = False):
        super().__init__(bit_state, (weight.shape[0],), signed=True, layer_name=layer_name, like=weight)
        self.correction = correction
        if correction:
            self.kernel = self.corrected_kernel

    def _first_values(self, weight, hi):
        return first_scale(weight.abs().flatten(1).mean(dim=1), math.sqrt(hi) / 2), None

    def stored(self, weight, bits: int):
        """Return (x, scale, offset or None, signed): what is rounded to codes of `bits` bits, before any correction."""
        return weight, self.scale(bits), None, True

    @staticmethod
    def quantize_all(quantizers, weights, bits) -> list:
        """Return every weight, quantized by its quantizer, one tensor per bit-width in `bits`; the weights share a
        dtype and a device."""
        scales = [[averaged(quantizer.scales[str(b)]) for b in bits] for quantizer in quantizers]
        units = [[quantizer.scale_units[str(b)] for b in bits] for quantizer in quantizers]
        floors = [[quantizer.scale_floors[str(b)] for b in bits] for quantizer in quantizers]
        if quantizers[0].correction:
            return [mbq_kernels.fake_quantize_corrected(weight, of_weight, bits=bits, axis=0, scale_unit=unit,
                                                        scale_floor=floor, out_dtype=autocast_dtype(weight))
                    for weight, of_weight, unit, floor in zip(weights, scales, units, floors, strict=True)]
        return mbq_kernels.fake_quantize_foreach(weights, scales, bits=bits, axis=0, scale_units=units,
                                                 scale_floors=floors, out_dtype=autocast_dtype(weights[0]))


class ActivationQuantizer(ScaledQuantizer):
    """Activations: one learned scale per bit-width for the whole tensor.

    scale starts at 2 mean|x - offset| / sqrt(hi) of the first training batch at its bit-width (Huang et al., 2025,
    arXiv 2502.01199, eq. 4-5; initial values as in its public code). In several processes the means are those of the
    whole batch, and so are the gradients of the scales once they are averaged.

    Args:
        bit_state: the model's.
        signed: code range; None: signed if the first training batch, at any bit-width, shows a negative value. With
            an offset None means unsigned.
        learn_offset: learn a real offset per bit-width; it starts at the batch's minimum, 0 after ReLU, and at 0 with
            signed codes (our choice).
        own_bits: compute at this bit-width, whatever the model's; None: at the model's.
        layer_name: what error messages call the layer.
        like: a tensor that gives device and dtype [default float32 on CPU].
    """

    def __init__(self, bit_state: BitState, *, signed: bool | None = None, learn_offset: bool = False,
                 own_bits: int | None = None, layer_name: str = "layer", like: torch.Tensor | None = None):
        like = torch.empty(0) if like is None else like
        signed = False if learn_offset and signed is None else signed
        super().__init__(bit_state, (), signed=signed, layer_name=layer_name, like=like, own_bits=own_bits)
        if learn_offset:
            self.offsets = self._parameter_per_bits(())

    def _first_values(self, x, hi):
        if self.offsets is None and not self.signed and (x < 0).any():
            warnings.warn(f"{self.layer_name}: inputs are negative and its activation quantizer is unsigned: they "
                          "become 0; a rule of convert can say signed", RuntimeWarning, stacklevel=2)
        offset = None
        if self.offsets is not None:
            offset = torch.zeros_like(x.min()) if self.signed else distributed.minimum(x.min())
        distances = x if offset is None else x - offset
        return first_scale(distributed.mean(distances.abs().mean()), math.sqrt(hi) / 2), offset

    def grid(self, bits: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (scale, offset or None) at `bits` bits, without gradient: what an export computes with."""
        offset = None if self.offsets is None else self.offsets[str(self.kept_at(bits))].detach().clone()
        return self.scale(bits), offset

    def _grad_factor(self, x):
        processes = distributed.world_size()
        if processes == 1:
            return None
        return 1 / math.sqrt(max(1, x.numel() * processes) * code_range(self.bits, self.signed)[1])


@dataclass(frozen=True)
class Learned(WeightSpec, ActivationSpec):
    """Scales that are trained: of weights one per channel or group and bit-width, of activations one per bit-width.

    Args:
        correction: of weights - give every channel of a quantized weight its mean and deviation in float, so that one
            BatchNorm serves all bit-widths (Kim et al., 2025, arXiv 2510.20673); not with group_size.
        bits: of activations - their bit-width, 1..8, whatever that of the weights [the one in use].
        offset: of activations - learn a real offset per bit-width [off: 0 fits what a ReLU gives].
        signed: of activations - the code range [None: as the first batch shows, unsigned with an offset].
        group_size: of weights - how many that lie side by side in an output channel share a scale, such as 32 or 128;
            divides their number in every layer that has it [None: one scale per channel]. Stores and `deploy` do not
            take groups, ONNX files do.

    Reference: Esser et al., "Learned Step Size Quantization", 2020, arXiv 1902.08153.
    """

    name: ClassVar[str] = "learned"
    correction: bool = correction_option()
    bits: int | None = option(None, "of activations, whatever the weights have; 0: as the weights, 32: float",
                              of="activations", flag="activation_bits")
    offset: bool = option(False, "learn an offset of the activations", of="activations", flag="learn_offset")
    signed: bool | None = option(None, "code range of the activations", of="activations", flag="")
    group_size: int | None = option(None, "weights of an output channel that share a scale; 0: all", of="weights")

    def __post_init__(self):
        super().__post_init__()
        if not (self.signed is None or isinstance(self.signed, bool)):
            raise TypeError(f"Learned: signed must be True, False or None, got {self.signed!r}")
        if self.bits is not None:
            check_bit_widths("Learned", (self.bits,))
        if self.group_size is not None:
            self._check_groups()

    def _check_groups(self):
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int):
            raise TypeError(f"Learned: group_size must be an integer or None, got {self.group_size!r}")
        if self.group_size < 2:
            raise ValueError(f"Learned: group_size must be at least 2, got {self.group_size}")
        if self.correction:
            raise ValueError("Learned: correction must be False with group_size: the corrected kernel has scales per "
                             "channel alone, got True")

    def weight_quantizer(self, bit_state: BitState, weight: torch.Tensor, *,
                         layer_name: str) -> WeightQuantizer | GroupWeightQuantizer:
        if self.group_size is not None:
            return GroupWeightQuantizer(bit_state, weight, group_size=self.group_size, layer_name=layer_name)
        return WeightQuantizer(bit_state, weight, layer_name=layer_name, correction=self.correction)

    def input_quantizer(self, bit_state: BitState, *, like: torch.Tensor, layer_name: str) -> ActivationQuantizer:
        return ActivationQuantizer(bit_state, signed=self.signed, learn_offset=self.offset, own_bits=self.bits,
                                   layer_name=layer_name, like=like)
