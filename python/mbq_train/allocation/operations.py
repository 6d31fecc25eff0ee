"""Multiply-accumulates of every layer in one forward."""

import torch
from torch import nn

from ..conversion.call_order import arguments, try_example
from ..quantize.bits import converted_states
from ..quantize.layers import weight_layers


def multiply_accumulates(model: nn.Module, example) -> dict[str, int]:
    """Return how many products each quantized layer of `model` adds up in one forward on `example`, by its name.

    A layer that is called several times has the sum, one that is not called 0. The forward runs in eval mode without
    gradients and leaves the model as it was.

    Args:
        model: what `convert` returned.
        example: a tensor, a tuple of arguments or a dict of keyword arguments to call the model with.

    Raises: ValueError where nothing is quantized and where the forward fails; TypeError for another example.
    """
    converted_states("multiply_accumulates", model)
    arguments("multiply_accumulates", example)
    layers = weight_layers(model)
    counts = dict.fromkeys(layers, 0)

    def count(name: str, out: torch.Tensor) -> None:
        each = layers[name].weight_by_channel()[0].numel()  # products of one output: in / groups x kernel
        counts[name] += out.numel() * each

    hooks = [layer.register_forward_hook(lambda layer, args, out, name=name: count(name, out))
             for name, layer in layers.items()]
    try:
        try_example("multiply_accumulates", model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return counts
