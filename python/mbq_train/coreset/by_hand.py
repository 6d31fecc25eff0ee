"""ByHand: finds parameters that a forward uses outside of the layers they belong to."""

import contextlib

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from .layer_norms import parameters_of


class ByHand(TorchFunctionMode):
    """Inside the block it is an error when a parameter of `layers` enters an operation and no layer is being called.

    Args:
        layers: with their names.
        counted: ids of the parameters that matter.

    Raises RuntimeError there, naming the parameter: a gradient that no hook on a layer sees.
    """

    def __init__(self, layers: dict[nn.Module, str], counted: set[int]):
        super().__init__()
        self.names = {id(parameter): f"{name}.{kind}" for layer, name in layers.items()
                      for kind, parameter in zip(("weight", "bias"), parameters_of(layer), strict=True)
                      if id(parameter) in counted}
        self.layers, self.depth = layers, 0

    def __enter__(self):
        self.hooks = contextlib.ExitStack()
        for layer in self.layers:
            for hook in (layer.register_forward_pre_hook(self._enter), layer.register_forward_hook(self._leave)):
                self.hooks.callback(hook.remove)
        return super().__enter__()

    def __exit__(self, *error):
        self.hooks.close()
        return super().__exit__(*error)

    def _enter(self, *_) -> None:
        self.depth += 1

    def _leave(self, *_) -> None:
        self.depth -= 1

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not self.depth and isinstance(result, torch.Tensor) and function is not torch.Tensor.detach:
            for value in tree_iter((args, kwargs)):
                if id(value) in self.names:
                    raise RuntimeError(f"GradNormScorer: parameters must be used by their layers alone, got "
                                       f"{self.names[id(value)]} in {getattr(function, '__name__', function)}")
        return result
