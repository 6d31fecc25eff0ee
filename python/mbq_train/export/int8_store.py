"""export_store: the int8 store of a trained network, which mbq_store reads without torch."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

from .._names import look_up
from .._packages import required
from ..checkpoint import check_storable
from ..quantize.bits import bit_states
from ..quantize.layer_bits import own_layer_bits
from ..quantize.quantizer import BaseWeightQuantizer
from .quantized_layers import quantized_layers

if TYPE_CHECKING:
    import mbq_store

REST = ("float32", "bfloat16")
LAYOUTS = ("codes", "planes", "packed")


def export_store(model: nn.Module, path, *, bits: int | None = None, layout: str = "codes", rest: str = "float32",
                 metadata: dict[str, str] | None = None) -> None:
    """Write the codes of every quantized weight of `model`, their scales, and the float rest to `path`.

    Layers trained with double rounding are stored at their highest bit-width and can be switched to any lower one; the
    bit-widths of other quantizers have codes of their own, of which one is stored, `bits`. A layer with a bit-width of
    its own, by `set_layer_bits`, is stored at that one alone, whatever its quantizer. A weight correction is folded
    into scale and offset. Codes of round-clamp are signed and have no offset, except at 1 bit, where they are 0 and 1;
    in its sign-magnitude form a layer of n bits has codes of n + 1.

    Args:
        model: what `convert` returned, with first values for all scales.
        path: the file, written whole or not at all.
        bits: the bit-width to store of layers that are not rounded twice and have none of their own; required where
            there are any.
        layout: 'codes', a byte each; 'planes', of which a lower bit-width reads a part where rounding is half_up; or
            'packed', each layer in the layout that takes the fewest bytes, for layers of one bit-width.
        rest: 'float32', or 'bfloat16' to halve the other float tensors (normalisation, first and last layer). Those in
            float8 become bfloat16, which has all their values.
        metadata: more strings for the file's header.

    Raises:
        ValueError: an unknown layout or rest; nothing quantized; bits missing or not trained; two roundings; a layout
        that cannot hold the codes; scales of groups; double rounding with a weight correction; a layer of 8 bits in
        round-clamp's sign-magnitude form; an entry of the state_dict, as of get_extra_state, that is no dense, real
        tensor. TypeError: float64 weights. RuntimeError: a scale has no value yet. OSError: the disk is full.
        ImportError: mbq_store is not installed.
    """
    stores = required("export_store", "mbq_store")
    look_up("export_store", dict.fromkeys(REST), rest, argument="rest")
    look_up("export_store", dict.fromkeys(LAYOUTS), layout, argument="layout")
    layers = quantized_layers("export_store", model)
    data = [_layer_data(stores, name, layer, bits, layout) for name, layer in layers.items()]
    inside = {f"{name}.{part}" for name in layers for part in ("weight", "weight_quantizer")}
    others = {name: _array(stores, name, value, rest) for name, value in model.state_dict().items()
              if not any(name == key or name.startswith(f"{key}.") for key in inside)}
    trained = set.intersection(*(set(state.trained) for state in bit_states(model)))
    if own_layer_bits(model):
        trained = {layer.weight_quantizer.stored_bits(bits) for layer in layers.values()}
    stores.write(path, data, others, rounding=_rounding(layers), trained_bits=sorted(trained, reverse=True),
                    metadata=metadata)


def _rounding(layers: dict[str, nn.Module]) -> str:
    """Return that of all layers with double rounding: a store has one."""
    found = {layer.weight_quantizer.rounding for layer in layers.values() if _switchable(layer.weight_quantizer)}
    if len(found) > 1:
        raise ValueError(f"export_store: model must have one rounding in all layers, got {', '.join(sorted(found))}")
    return found.pop() if found else "half_even"


def _switchable(quantizer: BaseWeightQuantizer) -> bool:
    return quantizer.switchable and not quantizer.own_bits


def _layer_data(stores: ModuleType, name: str, layer: nn.Module, bits: int | None,
                layout: str) -> mbq_store.LayerData:
    quantizer = layer.weight_quantizer
    trained, bits = quantizer.bit_state.trained, quantizer.stored_bits(bits)
    if bits not in (*trained, quantizer.own_bits) or bits is None:
        raise ValueError(f"export_store: bits must be one of {', '.join(map(str, trained))}, at which {name} was "
                         f"trained, got {bits}")
    if _switchable(quantizer) and layout == "packed":
        raise ValueError(f"export_store: layout must be codes or planes for {name}, which can be switched, got packed; "
                         "mbq switch packs one bit-width of it")
    codes, scale, offset = quantizer.store_codes(layer.weight_by_channel(), bits)
    bits = quantizer.code_bits(bits)
    data = stores.LayerData(name, codes.cpu().contiguous().numpy(), scale.cpu().numpy(),
                            None if offset is None else offset.cpu().numpy(), bits=bits,
                            signed=codes.dtype == torch.int8, switchable=_switchable(quantizer),
                            module=type(layer).__name__)
    return replace(data, layout=stores.format.compact_layout(data.described(), bits) if layout == "packed" else layout)


def _array(stores: ModuleType, name: str, value, rest: str):
    """Return an entry of the rest for mbq_store. numpy knows neither bfloat16 nor float8, all of which bfloat16 holds.
    """
    check_storable("export_store", name, value)
    value = value.detach().cpu().contiguous()
    is_short = value.dtype == torch.bfloat16 or (value.is_floating_point() and value.itemsize == 1)
    if is_short or (value.is_floating_point() and rest == "bfloat16"):
        return stores.to_bfloat16(value.float().numpy())
    return value.numpy()
