"""convert: turn a float network into one that computes at several bit-widths."""

from torch import nn

from ._names import look_up
from .batch_norm import BATCH_NORMS, BitBatchNorm
from .bits import BitState, bit_states, check_bit_widths
from .layers import QuantConv2d, QuantLinear

_QUANT_TYPES = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d}
_BATCH_NORM = {"per_bit": True, "shared": False}
_ENDS = {"first": 0, "last": -1}


def convert(model: nn.Module, bits=(8, 4, 2), *, batch_norm: str = "per_bit", keep_float=("first", "last"),
            signed_inputs=(), learn_offset: bool = False) -> nn.Module:
    """Replace, in place, the Linear and Conv2d layers inside `model` by quantized ones, and return it.

    Weights, biases and the float BatchNorm stay the same Parameter objects. Afterwards the model computes at bits[0]
    until `set_bits`. Scales get their first values from the first training batch at each bit-width.

    Args:
        model: layers of exactly type nn.Linear and nn.Conv2d, below the model itself, are replaced.
        bits: different integers in 1..8 from high to low - the bit-widths to train.
        batch_norm: 'per_bit' gives each bit-width its own BatchNorm, 'shared' leaves BatchNorm alone.
        keep_float: names of layers to leave unquantized; 'first' and 'last' stand for the first and last such layer
            in the order of registration (Huang et al., 2025, arXiv 2502.01199, leaves these two in float).
        signed_inputs: names of layers whose input can be negative; all others get unsigned activation codes.
        learn_offset: learn a real offset of the activations per bit-width [off: 0 fits what a ReLU gives].

    Raises:
        TypeError: bits is not a sequence of integers. ValueError: bits unsorted, repeated or out of range; an unknown
        layer name or batch_norm; nothing to convert; model already converted.
    """
    bits = check_bit_widths("convert", bits)
    per_bit = look_up("convert", _BATCH_NORM, batch_norm, argument="batch_norm")
    if bit_states(model):
        raise ValueError(f"convert: model must not be converted already, got {type(model).__name__} with quantizers")
    layers = {name: module for name, module in model.named_modules() if name and type(module) in _QUANT_TYPES}
    kept = _names_of("keep_float", keep_float, layers)
    signed = _names_of("signed_inputs", signed_inputs, layers)
    chosen = {name: layer for name, layer in layers.items() if name not in kept}
    if not chosen:
        raise ValueError(f"convert: model must hold a Linear or Conv2d layer to quantize, got {type(model).__name__} "
                         f"with {len(layers)}, all kept in float")
    state = BitState(bits)
    new = {layer: _QUANT_TYPES[type(layer)].from_float(layer, state, signed=name in signed, learn_offset=learn_offset,
                                                       layer_name=name) for name, layer in chosen.items()}
    if per_bit:
        new |= {module: BitBatchNorm(module, state) for name, module in model.named_modules()
                if name and type(module) in BATCH_NORMS}
    _replace(model, new)
    return model


def _names_of(argument: str, names, layers: dict) -> set[str]:
    """The layer names meant by `names`, 'first' and 'last' resolved."""
    if isinstance(names, str):
        raise TypeError(f"convert: {argument} must be a sequence of layer names, got {names!r}")
    order, found = list(layers), set()
    for name in names:
        if name in _ENDS and name not in layers:
            found.update(order[_ENDS[name]:][:1])
        else:
            look_up("convert", layers, name, argument=argument)
            found.add(name)
    return found


def _replace(model: nn.Module, new: dict) -> None:
    """Put new[module] where `module` stands; a module used in several places is replaced in each."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new[module])
