"""Finding where a network became NaN or infinite."""

import torch
from torch import nn

from ..quantize.bits import in_mode, same_random_numbers
from ..quantize.quantizer import quantizers


class TrainingError(RuntimeError):
    """The loss or a parameter became NaN or infinite."""


def first_bad_parameter(model: nn.Module) -> str | None:
    """Return the name of the first parameter that holds NaN or infinity, None where there is none.

    Scales without first values, those of layers that are never called, are not looked at.
    """
    empty = {id(parameters[str(b)]) for quantizer in quantizers(model) for b in quantizer.missing
             for parameters in quantizer.learned()}
    bad = (f"parameter {name}" for name, value in model.named_parameters()
           if id(value) not in empty and not torch.isfinite(value).all())
    return next(bad, None)


@torch.no_grad()
def first_bad_layer(model: nn.Module, images: torch.Tensor) -> str:
    """Return where NaN or infinity begins: the images, a parameter, or the first layer of a forward whose output has
    it."""
    if not torch.isfinite(images).all():
        return "the images"
    if parameter := first_bad_parameter(model):
        return parameter
    found = []

    def look(name):
        return lambda module, args, out: found.append(name) if _bad(out) else None

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with same_random_numbers(model), in_mode(model, training=model.training):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return f"layer {found[0]}" if found else "the loss"


def _bad(out) -> bool:
    return isinstance(out, torch.Tensor) and out.is_floating_point() and not torch.isfinite(out).all()
