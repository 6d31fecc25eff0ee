"""What one forward with an example shows: the order in which layers are called, and what their inputs come from."""

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
    that was compared, how it differs from its base, or None; reached, for every layer and norm, the layers from whose
    outputs its last input comes, also through others, the one called last first; where that could not be followed, all
    that were called before."""

    order: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    followed: bool = False
    differences: dict[str, str | None] = field(default_factory=dict)
    reached: dict[str, list[str]] = field(default_factory=dict)


def registered(model: nn.Module, layers, norms) -> ExampleCalls:
    """Return what calls in the order of registration would show, where no example tells the true one."""
    calls, made = ExampleCalls(list(layers), list(layers)[:1]), []
    for name, _ in model.named_modules():
        if name in layers or name in norms:
            calls.reached[name] = made[::-1]
        if name in layers:
            made.append(name)
    return calls


def calls_of(model: nn.Module, layers: dict[str, nn.Module], example, bases: dict[str, type],
             norms: dict[str, nn.Module]) -> ExampleCalls:
    """Return what the calls of `layers` and `norms` in one forward of `model` show.

    A layer reads the network's input when its own input comes from a tensor in `example` and from no other layer's
    output. The forward runs in eval mode without gradients; modes and random numbers are afterwards as before.

    Args:
        model: any module.
        layers: modules in it, by name.
        example: a tensor, a tuple of arguments, or a dict of keyword arguments - what `model` is called with.
        bases: the class to compare each of these layers with, at every call.
        norms: modules that are no layers and of which `reached` is asked, by name.

    Raises:
        TypeError: example is none of these. ValueError: the forward fails; its error is the cause.
    """
    inside = set(layers.values())
    elsewhere = {id(parameter) for module in model.modules() if module not in inside
                 for parameter in module.parameters(recurse=False)}
    weights = [parameter for layer in inside for parameter in layer.parameters(recurse=False)
               if id(parameter) not in elsewhere]  # what is used by hand is a layer's output too; no tied embedding
    try:
        calls = _watch(model, layers, example, bases, norms, _Origins(arguments("convert", example), weights))
    except ValueError:  # of the model, or of an operation that cannot be followed
        calls = _watch(model, layers, example, bases, norms, None)
    calls.followed = bool(calls.first)
    calls.first = calls.first or calls.order[:1]
    return calls


def call_order(model: nn.Module, layers: dict[str, nn.Module], example) -> list[str]:
    """Return the names of those `layers` that one forward of `model` calls, in the order of their first call; arguments
    and errors as for `calls_of`."""
    return _watch(model, layers, example, {}, {}, None).order


def _watch(model, layers, example, bases, norms, origins) -> ExampleCalls:
    calls, made, seen, comparing = ExampleCalls(), [], set(), False  # made: the calls of layers that have returned

    def before(name, layer, args, kwargs):
        nonlocal comparing
        if comparing:
            return
        origin = _ANYTHING if origins is None else origins.of((args, kwargs))
        calls.reached[name] = _latest_first(made, origin)
        if name in norms:
            return
        if name not in calls.order:
            calls.order.append(name)
        if origin == _INPUT and name not in calls.first:
            calls.first.append(name)
        if name in bases:
            call, comparing = (name, *_shapes((args, kwargs))), True
            try:
                found = difference(layer, bases[name], args, kwargs, again=call in seen)
            finally:
                comparing = False
            seen.add(call)
            calls.differences[name] = calls.differences.get(name) or found

    def after(name, out):
        if comparing:
            return
        if origins is not None:
            origins.add(out, _CALLS << len(made))
        made.append(name)

    hooks = [module.register_forward_pre_hook(lambda *call, name=name: before(name, *call), with_kwargs=True)
             for name, module in {**layers, **norms}.items()]
    hooks += [layer.register_forward_hook(lambda layer, args, out, name=name: after(name, out))
              for name, layer in layers.items()]
    try:
        try_example("convert", model, example, origins)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


# What a value comes from: a mask of the network's input, of weights of layers that are used by hand, and from _CALLS on
# of the calls of layers in their order.
_INPUT, _BY_HAND, _CALLS, _ANYTHING = 1, 2, 4, -1


class _Origins(TorchDispatchMode):
    """Inside the block: the origin of what is in memory, by storage."""

    def __init__(self, inputs, weights):
        super().__init__()
        self.origins = dict.fromkeys(_storages(inputs), _INPUT)
        self.add(weights, _BY_HAND)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = str(function).split(".")[1]
        of_shape = name.startswith("new_") or name.endswith("_like")  # and of no value
        origin = 0 if of_shape else self.of((args, kwargs))
        self.origins |= dict.fromkeys(_storages(out), origin)  # whatever the memory was before
        return out

    def of(self, values) -> int:
        origin = 0
        for storage in _storages(values):
            origin |= self.origins.get(storage, 0)
        return origin

    def add(self, values, origin: int) -> None:
        self.origins |= {storage: self.origins.get(storage, 0) | origin for storage in _storages(values)}


def _latest_first(made: list[str], origin: int) -> list[str]:
    """Return the layers of the calls `made` that `origin` holds, the one called last first."""
    held = [name for place, name in enumerate(made) if origin & _CALLS << place]
    return [*dict.fromkeys(reversed(held))]


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
