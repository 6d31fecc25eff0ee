"""Which two layers' bit-widths a transitional BatchNorm goes by."""

from collections.abc import Collection, Mapping

from torch import nn

from ..quantize.attention import QuantMultiheadAttention
from ..quantize.batch_norm import BitBatchNorm
from ..quantize.layers import weight_layers
from ..quantize.quantizer import BaseWeightQuantizer
from ..quantize.transitional_batch_norm import TransitionalBatchNorm
from .call_order import ExampleCalls

Transition = tuple[str | None, str]  # the names of the quantized layer before, and of the layer that is normalised


def transition_of(norm: str, calls: ExampleCalls, layers: Collection[str]) -> Transition | None:
    """Return the two of `layers`, the quantized ones, whose bit-widths the statistics of `norm` depend on most: of
    those that reach its input the one called last, and of those that reach the input of that one the one called last,
    or None where there is none. None where no layer reaches the norm."""
    layer = _latest(norm, calls, layers)
    return None if layer is None else (_latest(layer, calls, layers), layer)


def transitional(norm: BitBatchNorm, transition: Transition, layers: Mapping[str, nn.Module]) -> TransitionalBatchNorm:
    """Return `norm` as a BatchNorm for every pair of bit-widths of the two layers in `transition`; layers: by name."""
    previous, layer = (None if name is None else bits_from(layers[name]) for name in transition)
    return TransitionalBatchNorm(norm, previous, layer)


def follow_layer(norm: BitBatchNorm, transition: Transition | None, layers: Mapping[str, nn.Module]) -> None:
    """Have `norm` go by the bit-width of the layer in `transition`, unless bit-widths of that are no trained ones."""
    if transition is not None and (quantizer := bits_from(layers[transition[1]])).sets_inputs:
        norm.go_by(quantizer)


def bits_from(layer: nn.Module) -> BaseWeightQuantizer:
    """Return what says the bit-width of a converted layer's outputs: the weight quantizer, of an attention's last
    projection."""
    return (layer.out_proj if isinstance(layer, QuantMultiheadAttention) else layer).weight_quantizer


def names_of(norm: BitBatchNorm, layers: Mapping[str, nn.Module]) -> list[str | None]:
    """Return the names of the `layers` that `norm` goes by. Raises KeyError for one that is not among them."""
    names = {None: None} | {bits_from(layer): name for name, layer in layers.items()}
    return [names[quantizer] for quantizer in norm.quantizers]


def converted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that `convert` quantized in `model`, an attention as one, by name."""
    layers = weight_layers(model)
    attentions = {name: module for name, module in model.named_modules()
                  if isinstance(module, QuantMultiheadAttention) and f"{name}.q_proj" in layers}
    return attentions | {name: layer for name, layer in layers.items() if name.rpartition(".")[0] not in attentions}


def _latest(name: str, calls: ExampleCalls, layers: Collection[str]) -> str | None:
    return next((other for other in calls.reached.get(name, ()) if other in layers), None)
