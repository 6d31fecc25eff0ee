"""The layers of a network that exports write as codes."""

import torch
from torch import nn

from ..quantize.layers import weight_layers


def quantized_layers(function: str, model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of `model` with a quantized weight, by each name they have.

    Raises ValueError where there is none, TypeError for float64, whose products float32 scales do not give.
    """
    layers = weight_layers(model, every_name=True)
    if not layers:
        raise ValueError(f"{function}: model must hold layers made by convert, not yet deployed, got "
                         f"{type(model).__name__} without any")
    for name, layer in layers.items():
        if layer.weight.dtype == torch.float64:
            raise TypeError(f"{function}: weight of {name} must be float32, bfloat16 or float16, got torch.float64")
    return layers
