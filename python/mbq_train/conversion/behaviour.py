"""Whether a subclass of a supported layer computes what the layer does: tried on the inputs of an example."""

import copy
import itertools
import math

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from .._errors import first_line
from ..quantize.bits import same_random_numbers

TOLERANCE = 1e-4  # of the largest value: the same sums in another order differ by less
_NARROW = (torch.float16, torch.bfloat16)
_TRIALS = {"": (False, False), " in training mode": (True, False), " once its parameters change": (True, True)}


def difference(layer: nn.Module, base: type, args: tuple, kwargs: dict, *, again: bool = False) -> str | None:
    """Return how what `layer` computes differs from what its base class would; None where it does not.

    Outputs are compared in eval mode, in training mode with the same random numbers, and there with other values in
    all Parameters and buffers too: an adapter starts at zeros, a mask at ones. So are the gradients in training mode.
    Half floats are compared in float32. The layer and the random numbers are left as they were.

    Args:
        layer: an instance of a subclass of `base`, without hooks of its own.
        args, kwargs: what it is called with.
        again: it was compared on inputs of these shapes; the outputs in eval mode are enough.
    """
    device = next(layer.parameters()).device.type
    with (torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False),
          same_random_numbers(layer)):
        for when, (training, changed) in itertools.islice(_TRIALS.items(), 1 if again else None):
            try:
                twin = _in_float32(copy.deepcopy(layer)).train(training).requires_grad_()
                if changed:
                    _change(twin)
                ours = _results(twin, args, kwargs)
            except Exception as error:
                return f"which cannot be compared with it{when} ({type(error).__name__}: {first_line(error)})"
            try:
                text = _described(ours, _results(_as_base(twin, base), args, kwargs))
            except Exception as error:
                return f"called as {base.__name__} cannot be ({type(error).__name__}: {first_line(error)})"
            if text:
                return f"{text}{when}"
    return None


def _in_float32(layer: nn.Module) -> nn.Module:
    """Return `layer`, in float32 where it holds half floats."""
    return layer.float() if any(value.dtype in _NARROW for value in layer.state_dict().values()) else layer


def _as_base(layer: nn.Module, base: type) -> nn.Module:
    """Return an instance of `base` itself with everything that `layer` holds."""
    plain = base.__new__(base)
    vars(plain).update(vars(layer))
    return plain


@torch.no_grad()
def _change(layer: nn.Module) -> None:
    for value in (*layer.parameters(), *layer.buffers()):
        if value.is_floating_point():
            value += torch.randn_like(value) * (value.abs().mean() if value.any() else 1)
        else:
            value.copy_(value == 0)


def _results(layer: nn.Module, args, kwargs) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return outputs, and the gradients of a random sum of them in inputs and Parameters."""
    leaves = []

    def fresh(value):
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach().to(torch.float32 if value.dtype in _NARROW else value.dtype, copy=True)
        if not value.is_floating_point():
            return value
        leaves.append(value.requires_grad_())
        return value.clone()  # the layer may change it in place

    args, kwargs = tree_map(fresh, (args, kwargs))
    with same_random_numbers(layer):  # the next call begins with the same
        outputs = [out for out in tree_leaves(layer(*args, **kwargs)) if isinstance(out, torch.Tensor)]
        leaves += layer.parameters()
        used = [out for out in outputs if out.requires_grad]
        gradients = torch.autograd.grad(used, leaves, [torch.randn_like(out) for out in used], allow_unused=True,
                                        materialize_grads=True) if used and layer.training else ()
    return [out.detach() for out in outputs], list(gradients)


def _described(ours, theirs) -> str | None:
    """Return where and by how much two results differ."""
    for mine, plain in itertools.zip_longest(ours[0], theirs[0], fillvalue=None):
        shapes = [None if value is None else tuple(value.shape) for value in (mine, plain)]
        if shapes[0] != shapes[1]:
            return f"its output on the example has shape {shapes[0]} for {shapes[1]}"
    for what, mine, plain in zip(("output", "gradients"), ours, theirs, strict=True):
        gap, size = _gap(mine, plain)
        if not gap <= TOLERANCE * size:
            return f"its {what} on the example differ{'s' * (what == 'output')} by {gap:.2g} of {size:.2g}"
    return None


def _gap(ours, theirs) -> tuple[float, float]:
    """Return (the largest difference, the largest of `theirs`)."""
    gap = size = 0.0
    for mine, plain in zip(ours, theirs, strict=True):
        if plain.numel():
            same = (mine == plain) | (mine.isnan() & plain.isnan())
            gap = max(gap, torch.where(same, 0, (mine - plain).abs()).nan_to_num(math.inf, math.inf).max().item())
            size = max(size, plain.abs().nan_to_num(0, 0).max().item())
    return gap, size
