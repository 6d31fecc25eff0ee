"""The learned quantizers of weights and activations: a scale for every bit-width, one bit-width at a time in use."""

import math
import warnings

import torch
from torch import nn

import mbq_kernels

from .. import distributed
from .bits import BitState, code_range
from .data_parallel import averaged
from .fake_quantizer import Quantizer, autocast_dtype
from .units import first_scale


class WeightQuantizer(Quantizer):
    """Weights: signed, symmetric, one learned scale per output channel (axis 0) and bit-width.

    scale starts at 2 mean|w| / sqrt(hi) of its channel (Esser et al., 2020, arXiv 1902.08153, section 2.1).

    Args:
        bit_state: the model's.
        weight: (C, ...), floating point - gives the number of channels, device and dtype.
        layer_name: what error messages call the layer.
        correction: give every channel of the quantized weight the mean and deviation that it has in float, at every
            bit-width, so that one BatchNorm can serve all of them (Kim et al., 2025, arXiv 2510.20673).
    """

    axis = 0
    corrected_kernel = staticmethod(mbq_kernels.fake_quantize_corrected)

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str = "layer",
                 correction: bool = False):
        super().__init__(bit_state, (weight.shape[0],), signed=True, layer_name=layer_name, like=weight)
        self.correction = correction
        if correction:
            self.kernel = self.corrected_kernel

    def hold(self, values: dict[int, torch.Tensor]) -> None:
        """Have the coming forwards return `values`, {bits: quantized weight}, until `bit_state.held` is emptied."""
        self.bit_state.held[self] = values

    @property
    def held(self) -> dict[int, torch.Tensor]:
        """Return what a bank has made ready for the coming forwards, {bits: quantized weight}; empty without one."""
        return self.bit_state.held.get(self, {})

    def forward(self, weight):
        if self.bit_state.held and self.bit_state.bits in self.held:
            return self.held[self.bit_state.bits]
        return super().forward(weight)

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


class ActivationQuantizer(Quantizer):
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

    def _grad_factor(self, x):
        processes = distributed.world_size()
        if processes == 1:
            return None
        return 1 / math.sqrt(max(1, x.numel() * processes) * code_range(self.bits, self.signed)[1])


def quantizers(model: nn.Module) -> list[Quantizer]:
    """Return every quantizer in `model`, in the order of registration."""
    return [module for module in model.modules() if isinstance(module, Quantizer)]
