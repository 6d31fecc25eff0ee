"""Writing a store, for whoever trained the network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from . import _core
from .checks import checked_threads
from .container import DTYPES, RESERVED, Tensor, write_file
from .format import KEY, SUFFIXES, Contents, Layer, layout_of
from .metadata import to_metadata

_NAMES = {np.dtype(numpy): name for name, numpy in DTYPES.items() if name != "BF16"}


@dataclass(frozen=True)
class BFloat16:
    """An array of bfloat16, which numpy does not have, as its bits in uint16."""
    bits: np.ndarray


def to_bfloat16(array: np.ndarray) -> BFloat16:
    """Float32 rounded to bfloat16, half to even; NaN stays NaN. Equivalent to torch's `tensor.bfloat16()`."""
    if array.dtype != np.float32:
        raise TypeError(f"to_bfloat16: array must be float32, got {array.dtype}")
    bits = array.view(np.uint32) if array.ndim else array.reshape(1).view(np.uint32).reshape(())
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return BFloat16(np.where(np.isnan(array), np.uint16(0x7FC0), rounded))


@dataclass(frozen=True)
class LayerData:
    """One quantized layer as `write` takes it; every field but the arrays as in `Layer`.

    codes: int8 (uint8 unsigned), the weight's shape - whatever the layout, which `write` makes.
    scale: (C,) or one element, float32, positive - the step at `bits`.
    offset: of scale's shape, float32 - real offset, or None.
    """
    name: str
    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None = None
    bits: int = 8
    signed: bool = True
    layout: str = "codes"
    switchable: bool = True
    module: str = ""

    def described(self) -> Layer:
        return Layer(self.name, tuple(np.shape(self.codes)), self.bits, self.signed, self.layout, self.switchable,
                     self.offset is not None, self.module)


def write(path, layers: Iterable[LayerData], rest: Mapping[str, np.ndarray | BFloat16] | None = None, *, rounding: str,
          trained_bits: Iterable[int] = (), metadata: Mapping[str, str] | None = None) -> None:
    """Write a store in the format of mbq_store.format: whole, or not at all, the old file as it was.

    Args:
        path: the file, replaced once the new one is on the disk.
        layers: the quantized layers.
        rest: every other tensor by its name in the state_dict; of any dtype of numpy and safetensors, or BFloat16.
        rounding: "half_even" or "half_up" - the second rounding the network was trained with.
        trained_bits: the bit-widths it was trained at.
        metadata: more strings by name, which `Store.metadata` gives back.

    Raises:
        TypeError, ValueError: naming the layer or tensor, for what no store can hold; codes out of range, scales that
            are not positive, and names that collide among them.
        OSError: the disk is full.
    """
    layers, rest = list(layers), dict(rest or {})
    try:
        contents = Contents(rounding, tuple(trained_bits), tuple(layer.described() for layer in layers))
    except (TypeError, ValueError) as error:
        raise type(error)(f"write: {error}") from None
    tensors = [tensor for layer in layers for tensor in _layer_tensors(layer)]
    reserved = {f"{layer.name}.{suffix}" for layer in layers for suffix in SUFFIXES} | {RESERVED}
    for name, array in rest.items():
        if not isinstance(name, str) or name in reserved:
            raise ValueError(f"write: rest must have names that are no layer's, got {name!r}")
        tensors.append(_rest_tensor(name, array))
    write_store(path, contents, tensors, metadata or {})


def write_store(path, contents: Contents, tensors: list[Tensor], metadata: Mapping[str, str]) -> None:
    """Write what `write` and `switch` have made."""
    if KEY in metadata or not all(isinstance(part, str) for item in metadata.items() for part in item):
        raise ValueError(f"write: metadata must map strings, {KEY!r} not among them, to strings, got {metadata!r}")
    write_file(path, tensors, {KEY: to_metadata(contents), **metadata})


def _layer_tensors(data: LayerData) -> list[Tensor]:
    layer = data.described()
    dtype = np.dtype(DTYPES[layer.code_dtype])
    if not isinstance(data.codes, np.ndarray) or data.codes.dtype != dtype:
        raise TypeError(f"write: codes of {layer.name!r} must be an array of {dtype}, "
                        f"got {getattr(data.codes, 'dtype', type(data.codes).__name__)}")
    stored, shape = layout_of(layer, layer.layout, layer.bits)
    codes = np.empty(shape, DTYPES[stored])
    good = _core.recode(np.ascontiguousarray(data.codes), from_layout="codes", from_bits=layer.bits, out=codes,
                        to_layout=layer.layout, to_bits=layer.bits, rows=layer.rows, columns=layer.columns,
                        signed=layer.signed, rounding="half_even", threads=checked_threads("write", None))
    if not good:
        raise ValueError(f"write: codes of {layer.name!r} must be {'signed' if layer.signed else 'unsigned'} codes of "
                         f"{layer.bits} bits, got {data.codes.min()} to {data.codes.max()}")
    arrays = {layer.layout: codes, "scale": _parameter(layer, "scale", data.scale)}
    if layer.has_offset:
        arrays["offset"] = _parameter(layer, "offset", data.offset)
    return [Tensor(f"{layer.name}.{suffix}", *layer.tensors()[f"{layer.name}.{suffix}"], lambda array=array: array)
            for suffix, array in arrays.items()]


def _parameter(layer: Layer, name: str, array) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise TypeError(f"write: {name} of {layer.name!r} must be an array of float32, "
                        f"got {getattr(array, 'dtype', type(array).__name__)}")
    if array.size != 1 and array.shape != (layer.rows,):
        raise ValueError(f"write: {name} of {layer.name!r} must have 1 or {layer.rows} elements, "
                         f"got shape {array.shape}")
    if not np.isfinite(array).all() or (name == "scale" and not (array > 0).all()):
        raise ValueError(f"write: {name} of {layer.name!r} must be {'positive and ' * (name == 'scale')}finite, "
                         f"got {array.min()} to {array.max()}")
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), layer.rows))


def _rest_tensor(name: str, array) -> Tensor:
    if isinstance(array, BFloat16) and array.bits.dtype == np.uint16:
        dtype, array = "BF16", array.bits
    elif isinstance(array, np.ndarray) and array.dtype in _NAMES:
        dtype = _NAMES[array.dtype]
    else:
        raise TypeError(f"write: rest must hold arrays of numbers or BFloat16, "
                        f"got {getattr(array, 'dtype', type(array).__name__)} in {name!r}")
    return Tensor(name, dtype, array.shape, lambda: np.ascontiguousarray(array))
