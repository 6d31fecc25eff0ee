"""The integer codes of a network's quantized weights, as every form of it stores them."""

import torch
from torch import nn

import mbq_kernels

from ..quantize.quantizers import WeightQuantizer


def quantized_layers(function: str, model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` with a quantized weight, by each name they have.

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
def codes_of(layer: nn.Module, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes int8, scale float32 (C,)) of the layer's weight at `bits`: code * scale is what it computes with.

    Raises RuntimeError where the scale has no value yet.
    """
    quantizer = layer.weight_quantizer
    quantizer.check_initialised([bits])
    kept = quantizer.kept_at(bits)
    scale = quantizer.scales[str(kept)].detach()
    codes = mbq_kernels.quantize_codes(layer.weight, scale, bits=kept, axis=0)
    if bits < kept:
        codes = mbq_kernels.switch_bits(codes, from_bits=kept, to_bits=bits, rounding=quantizer.rounding)
    return codes, scale.float() * 2.0 ** (kept - bits)
