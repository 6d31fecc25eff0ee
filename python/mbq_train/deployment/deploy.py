"""deploy: leave of a trained network's weights the integer codes alone."""

import torch
from torch import nn

from ..conversion.plan import replace_modules
from ..quantize.layers import QuantConv1d, QuantConv2d, QuantLinear, QuantTransposedLinear
from .stored_weight import LAYOUTS
from .switched_layers import SwitchedConv1d, SwitchedConv2d, SwitchedLinear, Workspace

_STORED = {QuantLinear: SwitchedLinear, QuantTransposedLinear: SwitchedLinear, QuantConv1d: SwitchedConv1d,
         QuantConv2d: SwitchedConv2d}


def deploy(model: nn.Module, *, layout: str = "codes") -> nn.Module:
    """Replace, in place, every layer trained with double rounding by one that keeps its codes, and return the model.

    Afterwards `set_bits` chooses among the trained bit-widths and those that `add_bits` adds, before or after; among
    all from 2 to the highest where only weights were quantized and BatchNorm is shared. 32 is an error at the next
    call. Layers keep the bit-width that `set_layer_bits` gave, and it can give others afterwards. Weights are what they
    were in training, bit for bit; sums of linear layers are in another order. Activation quantizers, BatchNorm and
    layers left in float stay as they are. The codes cannot be trained on.

    Args:
        model: what `convert` returned, trained with DoubleRoundingQuantizer.
        layout: 'codes', int8, a byte a weight; 'planes', bit planes of the same size, of which a linear layer with
            rounding half_up reads the first min(bits + 1, high_bits) alone.

    Returns:
        model; a new module where the model itself is such a layer.

    Raises:
        ValueError: an unknown layout; a layer whose bit-widths have codes of their own; no layer to replace.
        TypeError: float64 weights. RuntimeError: a scale has no value yet. Nothing is changed then.

    Reference: Huang et al., 2025, arXiv 2502.01199, section 3.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"deploy: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    layers = {module: name for name, module in model.named_modules() if type(module) in _STORED}
    for layer, name in layers.items():
        if layer.weight_quantizer.correction:
            raise ValueError(f"deploy: {name or 'the model'} must have no weight correction, which differs between "
                             "bit-widths and the codes do not have, got it on")
        if not layer.weight_quantizer.switchable:
            raise ValueError(f"deploy: {name or 'the model'} must have a DoubleRoundingQuantizer, got "
                             f"{type(layer.weight_quantizer).__name__}, whose bit-widths have codes of their own")
        if layer.weight.dtype == torch.float64:
            raise TypeError(f"deploy: weight of {name or 'the model'} must be float32, bfloat16 or float16, got "
                            "torch.float64")
    if not layers:
        raise ValueError(f"deploy: model must hold layers made by convert, got {type(model).__name__} without any")
    workspace = Workspace()
    stored = {layer: _STORED[type(layer)].from_quantized(layer, layout=layout, workspace=workspace) for layer in layers}
    replace_modules(model, stored)
    model = stored.get(model, model)
    _offer_all_bits(model, stored.values())
    return model


def _offer_all_bits(model, layers) -> None:
    """Let every bit-width that the codes have be chosen, where activations and BatchNorm do not depend on it."""
    bound = {id(module.bit_state) for module in model.modules()
             if hasattr(module, "bit_state") and module not in set(layers)}
    for layer in layers:
        state = layer.bit_state
        if id(state) not in bound:
            state.trained = tuple(range(layer.high_bits, 1, -1))
            state.select(state.bits)
