"""Watch: what a forward does with parameters outside of their layers, and what depends on its inputs."""

import contextlib

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from .gradient_forms import parameters_of


class Watch(TorchFunctionMode):
    """Inside the block, notes every operation of a forward.

    Args:
        layers: with their names.
        inputs: the arguments of the forward, with tensors in them.

    by_hand: {id of a parameter of `layers`: name} of those that entered an operation while no layer was being called.
    """

    def __init__(self, layers: dict[nn.Module, str], inputs):
        super().__init__()
        self.names = {id(parameter): f"{name}.{kind}" for layer, name in layers.items()
                      for kind, parameter in zip(("weight", "bias"), parameters_of(layer), strict=True)
                      if parameter is not None}
        self.layers, self.depth, self.by_hand = layers, 0, {}
        self._from_inputs, self._nodes = WeakIdKeyDictionary(), set()
        for value in tree_iter(inputs):
            self._note(value)

    def depends_on_inputs(self, value) -> bool:
        """Return whether a tensor, or the result of a node of the graph, was computed from the inputs."""
        return value in self._nodes if isinstance(value, torch.autograd.graph.Node) else value in self._from_inputs

    def __enter__(self):
        self.hooks = contextlib.ExitStack()
        for layer in self.layers:
            for hook in (layer.register_forward_pre_hook(self._enter),
                         layer.register_forward_hook(self._leave, always_call=True)):
                self.hooks.callback(hook.remove)
        return super().__enter__()

    def __exit__(self, *error):
        self.hooks.close()
        return super().__exit__(*error)

    def _enter(self, *_) -> None:
        self.depth += 1

    def _leave(self, layer, args, out) -> None:
        self.depth -= 1
        if any(value in self._from_inputs for value in tree_iter(args) if isinstance(value, torch.Tensor)):
            self._note(out)  # a custom autograd Function is no operation that can be watched

    def _note(self, value) -> None:
        if isinstance(value, torch.Tensor):
            self._from_inputs[value] = True
            if value.grad_fn is not None:
                self._nodes.add(value.grad_fn)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
        if not self.depth and isinstance(result, torch.Tensor) and function is not torch.Tensor.detach:
            self.by_hand |= {id(value): self.names[id(value)] for value in tensors if id(value) in self.names}
        if any(value in self._from_inputs for value in tensors):
            for value in (*tree_iter(result), *(tensors[:1] if function.__name__ == "__setitem__" else ())):
                self._note(value)
        return result
