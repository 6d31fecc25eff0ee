"""The quantized weights of a network, what quantizing each costs, and its sensitivity."""

from collections.abc import Mapping

import torch
from torch import nn

from ..quantize.bits import converted_states
from ..quantize.layers import weight_layers


def quantized_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight of every layer in `model` that `convert` quantized, by the layer's name.

    Raises ValueError when there is none.
    """
    converted_states("quantized_weights", model)
    return {name: layer.weight for name, layer in weight_layers(model).items()}


@torch.no_grad()
def perturbations(model: nn.Module) -> dict[str, float]:
    """Return ||Q(W) - W||^2 of every quantized layer of `model`, at the bit-width in use."""
    found = {}
    for name in quantized_weights(model):
        layer = model.get_submodule(name)
        found[name] = (layer.quantized_weight().double() - layer.weight_by_channel().double()).square().sum().item()
    return found


def sensitivities(traces: Mapping, errors: Mapping[str, float]) -> dict[str, float]:
    """Return t_l ||Q(W_l) - W_l||^2, t_l the mean trace of layer l's Hessian: how much the loss grows when it is
    quantized.

    Args:
        traces: of `hessian_traces`, by layer.
        errors: of `perturbations`, by layer.

    Reference: Dong et al., "HAWQ-V2", 2019, arXiv 1911.03852, eq. 10.
    """
    return {name: traces[name].mean * error for name, error in errors.items()}
