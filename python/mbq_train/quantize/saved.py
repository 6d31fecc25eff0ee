"""What quantized layers save for backward: of a tensor and its quantized form the first alone.

The backward of a quantizer needs x, that of the product behind it x_hat. A layer saves x, and x_hat is made again, bit
for bit, when the product's backward asks for it; so is w_hat from the weight. The quantizer's own node of the graph
keeps what that takes: x_hat is made again at the bit-width of its forward, and a tensor modified in place meanwhile
raises as ever.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import mbq_kernels

from .bits import converted_states
from .flags import version

_REMEMBERED = "mbq_train"  # the key in the metadata of a node of the graph


def recompute_quantized(model: nn.Module, on: bool = True) -> None:
    """Choose whether layers of `model` make quantized tensors again in backward [a new model keeps them].

    Layers that keep them from forward to backward take about twice the memory for the inputs of quantized layers, and
    spare a pass of quantization over inputs and weights: 2 to 4 % of a step of ResNet-18 and ViT-S on a CPU. Outputs
    and gradients are the same. Quantized tensors are always kept under torch.compile, which decides itself what graphs
    save, in torch.func's transforms, and where others' hooks on saved tensors are in force (activation checkpointing
    keeps none of them till backward).

    Args:
        model: what `convert` returned, or any module that contains it.

    Raises:
        TypeError: on is not a bool. ValueError: no layer of model was converted.
    """
    if not isinstance(on, bool):
        raise TypeError(f"recompute_quantized: on must be True or False, got {on!r}")
    for state in converted_states("recompute_quantized", model):
        state.recompute = on


def can_recompute() -> bool:
    """Return whether what is computed now may save less than it needs.

    Not where others' hooks see what is saved, as in a block of activation checkpointing: it keeps nothing till
    backward, and lets a saved tensor be read only once.
    """
    autograd = torch._C._autograd
    return (not torch.compiler.is_compiling() and torch.is_grad_enabled()
            and not torch._C._are_functorch_transforms_active() and autograd._saved_tensors_hooks_is_enabled()
            and autograd._top_saved_tensors_default_hooks(False) is None)


def product(function: Callable, x_hat: torch.Tensor, w_hat: torch.Tensor, bias: torch.Tensor | None,
            made: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return function(x_hat, w_hat, bias), whose backward makes those of `made`, x_hat or w_hat, again."""
    again = [(value, how) for value in made if (how := _recomputation(value)) is not None]
    if not again:
        return function(x_hat, w_hat, bias)

    def pack(tensor):
        for value, how in again:
            if torch._C._is_alias_of(tensor, value):
                return _Again(how, tensor)
        return _Kept(tensor)

    with saved_tensors_hooks(pack, _unpack):
        out = function(x_hat, w_hat, bias)
    again.clear()  # the graph keeps `pack`
    return out


def remember(value: torch.Tensor, function: Callable, *tensors: torch.Tensor) -> torch.Tensor:
    """Return `value`, which is function(*tensors) and recomputed as that where a layer saves it.

    Args:
        tensors: are kept as long as the graph is: weights and scales, which live anyway.
    """
    if can_recompute() and value.grad_fn is not None:
        kept = [_Kept(tensor.detach()) for tensor in tensors]
        value.grad_fn.metadata[_REMEMBERED] = torch.no_grad()(lambda: function(*map(_Kept.tensor, kept)))
    return value


def _recomputation(value: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    if value.grad_fn is None or version(value):
        return None
    return value.grad_fn.metadata.get(_REMEMBERED) or mbq_kernels.recomputation(value)


class _Kept:
    """A tensor that is saved as it is: with hooks autograd leaves it to them to see writes to it."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor, self._version = tensor, version(tensor)

    def tensor(self) -> torch.Tensor:
        if version(self._tensor) != self._version:
            raise RuntimeError("one of the variables needed for gradient computation has been modified by an inplace "
                               f"operation: a tensor of shape {tuple(self._tensor.shape)} is at version "
                               f"{version(self._tensor)}, expected version {self._version} instead")
        return self._tensor


class _Again:
    """A view of a quantized tensor, which `how` makes again."""

    def __init__(self, how: Callable[[], torch.Tensor], view: torch.Tensor):
        self._how, self._view = how, (view.shape, view.stride(), view.storage_offset())

    def tensor(self) -> torch.Tensor:
        return self._how().as_strided(*self._view)


def _unpack(saved: _Kept | _Again) -> torch.Tensor:
    return saved.tensor()
