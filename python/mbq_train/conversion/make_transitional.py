"""make_transitional: from a BatchNorm for every bit-width to one for every pair."""

from torch import nn

from ..quantize.batch_norm import BitBatchNorm
from ..quantize.bits import FLOAT, converted_states, in_mode, set_bits
from .call_order import calls_of, registered
from .plan import replace_modules
from .transitions import converted_layers, transition_of, transitional


def make_transitional(model: nn.Module, example=None) -> nn.Module:
    """Replace, in place, each BitBatchNorm in `model` that a quantized layer reaches by a TransitionalBatchNorm, and
    return the model: for a network that is trained at one bit-width for all layers, and goes on with mixed ones.

    Every pair of bit-widths begins with the BatchNorm that was trained at the bit-width of the layer. Those of (b, b)
    keep their Parameter objects, so that the model computes what it did at every bit-width; make the optimizer
    afterwards, which must know the others.

    Args:
        model: what `convert` returned with batch_norm='per_bit', trained or not; without such norms it stays as it is.
        example: what `model` is called with, as for `convert`, in float: shows which layers each norm follows [None:
            those that are registered before it].

    Raises TypeError, ValueError: as `convert` for the example; ValueError where no layer was converted.
    """
    converted_states("make_transitional", model)
    layers = converted_layers(model)
    norms = {name: module for name, module in model.named_modules() if type(module) is BitBatchNorm}
    if example is None:
        calls = registered(model, layers, norms)
    else:
        with in_mode(model, training=False):
            set_bits(model, FLOAT)  # which needs no first values of scales
            calls = calls_of(model, layers, example, {}, norms)
    found = {name: transition_of(name, calls, layers) for name in norms}
    replace_modules(model, {norms[name]: transitional(norms[name], transition, layers)
                            for name, transition in found.items() if transition is not None})
    return model
