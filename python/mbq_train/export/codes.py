"""The integer codes of a network's quantized weights, as every form of it stores them."""

import torch
from torch import nn

import mbq_kernels

from ..quantize.double_rounding import DoubleRoundingQuantizer
from ..quantize.quantizers import WeightQuantizer
from ..quantize.round_clamp import RoundClampQuantizer


def quantized_layers(function: str, model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of `model` with a quantized weight, by each name they have.

    Raises ValueError where there is none, TypeError for float64, whose products float32 scales do not give.
    """
    layers = {name: module for name, module in model.named_modules(remove_duplicate=False)
              if isinstance(getattr(module, "weight_quantizer", None), WeightQuantizer)}
    if not layers:
        raise ValueError(f"{function}: model must hold layers made by convert, not yet deployed, got "
                         f"{type(model).__name__} without any")
    for name, layer in layers.items():
        if layer.weight.dtype == torch.float64:
            raise TypeError(f"{function}: weight of {name} must be float32, bfloat16 or float16, got torch.float64")
    return layers


@torch.no_grad()
def codes_of(layer: nn.Module, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return (codes int8 or uint8, scale float32 (C,), offset float32 (C,) or None) of the layer's weight at `bits`, or
    at the bit-width that `set_layer_bits` gave it: code * scale + offset is what it computes with. A weight correction
    is folded in.

    Raises RuntimeError where the scale has no value yet, ValueError for double rounding with a weight correction and
    for 8 bits in round-clamp's sign-magnitude form.
    """
    quantizer = layer.weight_quantizer
    if isinstance(quantizer, RoundClampQuantizer):
        codes, scale = quantizer.encode(layer.weight_by_channel(), quantizer.own_bits or bits)
        return codes, scale.expand(len(codes)).contiguous(), None
    quantizer.check_initialised([bits])
    kept = quantizer.kept_at(bits)
    x, scale, offset, signed = quantizer.stored(layer.weight_by_channel(), kept)
    options = {"bits": kept, "signed": signed, "axis": 0 if scale.dim() else None}
    codes = mbq_kernels.quantize_codes(x, scale, offset, **options)
    if quantizer.correction:
        if isinstance(quantizer, DoubleRoundingQuantizer):
            raise ValueError(f"export: {quantizer.layer_name} must have no weight correction, which differs between "
                             "bit-widths and codes that are rounded twice do not have, got it on; convert without "
                             "weight_correction, or with quantizer 'learned'")
        scale, offset = mbq_kernels.fold_correction(x, scale, offset, **options)
    if bits < kept:
        codes = mbq_kernels.switch_bits(codes, from_bits=kept, to_bits=bits, rounding=quantizer.rounding)
    scale, offset = (None if parameter is None else parameter.float().expand(len(codes)).contiguous()
                     for parameter in (scale, offset))
    return codes, scale * 2.0 ** (kept - bits), offset


def code_bits(layer: nn.Module, bits: int) -> int:
    """Return the bit-width of what `codes_of` gives, which in round-clamp's sign-magnitude form has a sign beside the
    bits."""
    quantizer = layer.weight_quantizer
    bits = quantizer.own_bits or bits
    return quantizer.code_bits(bits) if isinstance(quantizer, RoundClampQuantizer) else bits
