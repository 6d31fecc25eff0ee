"""What one forward with an example shows: the order in which layers are called, and which read the network's input."""

import contextlib
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..quantize.bits import in_mode, same_random_numbers
from .behaviour import difference


@dataclass
class ExampleCalls:
    """Of one forward: order, the names of the layers it calls, by their first call; first, those of them that read the
    network's input, or the one called first where that could not be `followed` to any; differences, for every subclass
    that was compared, how it differs from its base, or None."""

    order: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    followed: bool = False
    differences: dict[str, str | None] = field(default_factory=dict)


def calls_of(model: nn.Module, layers: dict[str, nn.Module], example, bases: dict[str, type]) -> ExampleCalls:
    """Return what the calls of `layers` in one forward of `model` show.

    A layer reads the network's input when its own input comes from a tensor in `example` and from no other layer's
    output. The forward runs in eval mode without gradients; modes and random numbers are afterwards as before.

    Args:
        model: any module.
        layers: modules in it, by name.
        example: a tensor, a tuple of arguments, or a dict of keyword arguments - what `model` is called with.
        bases: the class to compare each of these layers with, at every call.

    Raises:
        TypeError: example is none of these. ValueError: the forward fails; its error is the cause.
    """
    inside = set(layers.values())
    elsewhere = {id(parameter) for module in model.modules() if module not in inside
                 for parameter in module.parameters(recurse=False)}
    weights = [parameter for layer in inside for parameter in layer.parameters(recurse=False)
               if id(parameter) not in elsewhere]  # what is used by hand is a layer's output too; no tied embedding
    try:
        calls = _watch(model, layers, example, bases, _Origins(arguments("convert", example), weights))
    except ValueError:  # of the model, or of an operation that cannot be followed
        calls = _watch(model, layers, example, bases, None)
    calls.followed = bool(calls.first)
    calls.first = calls.first or calls.order[:1]
    return calls


def call_order(model: nn.Module, layers: dict[str, nn.Module], example) -> list[str]:
    """Return the names of those `layers` that one forward of `model` calls, in the order of their first call; arguments
    and errors as for `calls_of`."""
    return _watch(model, layers, example, {}, None).order


def _watch(model, layers, example, bases, origins) -> ExampleCalls:
    calls, seen, comparing = ExampleCalls(), set(), False

    def before(name, layer, args, kwargs):
        nonlocal comparing
        if comparing:
            return
        if name not in calls.order:
            calls.order.append(name)
        if origins is not None and name not in calls.first and origins.reads_input((args, kwargs)):
            calls.first.append(name)
        if name in bases:
            call, comparing = (name, *_shapes((args, kwargs))), True
            try:
                found = difference(layer, bases[name], args, kwargs, again=call in seen)
            finally:
                comparing = False
            seen.add(call)
            calls.differences[name] = calls.differences.get(name) or found

    def after(out):
        if origins is not None and not comparing:
            origins.of_layers |= _storages(out)

    hooks = []
    for name, layer in layers.items():
        hooks += [layer.register_forward_pre_hook(lambda *call, name=name: before(name, *call), with_kwargs=True),
                  layer.register_forward_hook(lambda layer, args, out: after(out))]
    try:
        try_example("convert", model, example, origins)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


class _Origins(TorchDispatchMode):
    """Inside the block: the memory that holds what was computed from `inputs`, and what from `weights` or the outputs
    of layers."""

    def __init__(self, inputs, weights):
        super().__init__()
        self.of_input, self.of_layers = _storages(inputs), _storages(weights)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = str(function).split(".")[1]
        of_shape = name.startswith("new_") or name.endswith("_like")  # and of no value
        read, written = set() if of_shape else _storages((args, kwargs)), _storages(out)
        for marked in (self.of_input, self.of_layers):
            if read & marked:
                marked |= written
            else:
                marked -= written - read  # memory that was something else before
        return out

    def reads_input(self, values) -> bool:
        read = _storages(values)
        return bool(read & self.of_input) and not read & self.of_layers


def _shapes(values) -> list:
    return [None if leaf.is_nested else tuple(leaf.shape) for leaf in tree_leaves(values)
            if isinstance(leaf, torch.Tensor)]


def _storages(values) -> set[int]:
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(values)
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided}


def try_example(function: str, model: nn.Module, example, *modes) -> None:
    """Run one forward, as `calls_of` makes it, inside of `modes`; raise as it does, in the name of `function`."""
    args, kwargs = arguments(function, example)
    try:
        with in_mode(model, training=False), torch.no_grad(), same_random_numbers(model):
            with contextlib.ExitStack() as stack:
                for mode in filter(None, modes):
                    stack.enter_context(mode)
                model(*args, **kwargs)
    except Exception as error:
        raise ValueError(f"{function}: example must be what {type(model).__name__} can be called with, got an error "
                         f"from its forward ({type(error).__name__}: {error})") from error


def arguments(function: str, example) -> tuple[tuple, dict]:
    """Return (args, kwargs) to call a model with. Raises TypeError where `example` is no tensor, tuple or dict."""
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, dict):
        return (), example
    raise TypeError(f"{function}: example must be a tensor, a tuple of arguments or a dict of keyword arguments, "
                    f"got {type(example).__name__}")
