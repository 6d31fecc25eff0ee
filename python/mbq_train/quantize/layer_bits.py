"""Bit-widths of single layers: a mixed-precision configuration of a model."""

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn

from .own_bits import OwnBits
from .quantizer import Quantizer, weight_quantizer_of


def set_layer_bits(model: nn.Module, bits: Mapping[str, int | None]) -> None:
    """Give layers of `model` a bit-width of their own, whatever `set_bits` says; at 32 bits they stay in float.

    It is the bit-width of a layer's weight, and of its input too, unless the weights are RoundClamp(), whose bit-widths
    are those of weights alone, or the inputs have a bit-width fixed by their spec. The state_dict holds it; exports,
    stores and `deploy` keep each such layer at its own bit-width.

    Args:
        model: what `convert` or `deploy` returned, or a module that contains it.
        bits: by the name of the layer in `model`, one of the trained bit-widths; 1..8 with RoundClamp() weights; 2 to
            the highest with DoubleRounding() weights where the inputs have no scales for every bit-width. None: the
            model's again.

    Raises TypeError, ValueError for a name that is no such layer and a bit-width that it cannot have; nothing is
    changed then.
    """
    if not isinstance(bits, Mapping):
        raise TypeError(f"set_layer_bits: bits must be a mapping by layer, got {type(bits).__name__}")
    layers = {name: _parts(module) for name, module in model.named_modules() if _owner(module) is not None}
    for name, b in bits.items():
        if name not in layers:
            known = f", of which there are {', '.join(list(layers)[:3])}, ..." if layers else ""
            raise ValueError(f"set_layer_bits: bits must name layers with a quantized weight{known}, got {name!r}")
        if b is None:
            continue
        if isinstance(b, bool) or not isinstance(b, int):
            raise TypeError(f"set_layer_bits: bits must be integers or None, got {b!r} for {name}")
        for part in layers[name]:
            part.check_own_bits(b)
    for name, b in bits.items():
        for part in layers[name]:
            part.set_own_bits(b)


def own_layer_bits(model: nn.Module) -> dict[str, int]:
    """Return what `set_layer_bits` has given to layers of `model`, by their names."""
    own = {name: owner.own_bits for name, module in model.named_modules() if (owner := _owner(module)) is not None}
    return {name: bits for name, bits in own.items() if bits}


@contextlib.contextmanager
def without_layer_bits(model: nn.Module) -> Iterator[None]:
    """Have all layers of `model` compute at the model's bit-width inside the block, until it gives them others; after
    it they have those from before it."""
    own = own_layer_bits(model)
    set_layer_bits(model, dict.fromkeys(own))
    try:
        yield
    finally:
        set_layer_bits(model, dict.fromkeys(own_layer_bits(model)) | own)


def _owner(module: nn.Module) -> OwnBits | None:
    """Return what holds the bit-width of a layer's weight, None for other modules: its quantizer, or where the weight
    is stored as codes the layer itself."""
    own = isinstance(module, OwnBits) and not isinstance(module, Quantizer)
    return module if own else weight_quantizer_of(module)


def _parts(layer: nn.Module) -> list[OwnBits]:
    """Return what of `layer` has the bit-width that `set_layer_bits` gives."""
    owner = _owner(layer)
    of_input = getattr(layer, "input_quantizer", None)
    follows = isinstance(of_input, Quantizer) and not of_input.fixed_bits and getattr(owner, "sets_inputs", True)
    return [owner, of_input] if follows else [owner]
