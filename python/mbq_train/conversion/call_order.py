"""The order in which a forward calls its layers."""

import torch
from torch import nn

from ..quantize.bits import in_mode, same_random_numbers


def call_order(model: nn.Module, layers: dict[str, nn.Module], example) -> list[str]:
    """The names of those `layers` that one forward of `model` calls, in the order of their first call.

    The forward runs in eval mode without gradients; modes and random numbers are afterwards as before.

    Args:
        model: any module.
        layers: modules in it, by name.
        example: a tensor, a tuple of arguments, or a dict of keyword arguments - what `model` is called with.

    Raises:
        TypeError: example is none of these. ValueError: the forward fails; its error is the cause.
    """
    called = {}
    hooks = [layer.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
             for name, layer in layers.items()]
    try:
        try_example("convert", model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return list(called)


def try_example(function: str, model: nn.Module, example) -> None:
    """One forward, as `call_order` makes it. Raises as it does, in the name of `function`."""
    args, kwargs = arguments(function, example)
    try:
        with in_mode(model, training=False), torch.no_grad(), same_random_numbers(model):
            model(*args, **kwargs)
    except Exception as error:
        raise ValueError(f"{function}: example must be what {type(model).__name__} can be called with, got an error "
                         f"from its forward ({type(error).__name__}: {error})") from error


def arguments(function: str, example) -> tuple[tuple, dict]:
    """(args, kwargs) to call a model with. Raises TypeError where `example` is no tensor, tuple or dict."""
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, dict):
        return (), example
    raise TypeError(f"{function}: example must be a tensor, a tuple of arguments or a dict of keyword arguments, "
                    f"got {type(example).__name__}")
