"""The format of a store, version 1, and what its metadata says.

A store is one safetensors file. Its metadata holds, under "mbq_store", a JSON object with exactly

    version       1
    rounding      "half_even" or "half_up": the second rounding of the training, used for every switch
    trained_bits  the bit-widths the network was trained at
    layers        one object per quantized layer with exactly the fields of `Layer`

Tensors of a layer of C output channels with n codes each:

    <layer>.codes    int8 (uint8 unsigned), the weight's shape, output channel first
    <layer>.planes   instead: uint8 (bits, C, ceil(n / 8)), two's complement, most significant plane first, low bits of
                     a byte first. With half_up, b bits need only the first min(b + 1, bits) planes.
    <layer>.packed   instead: uint8 (C, ceil(n * bits / 8)), fields of 1, 2 or 4 bits, low bits first; the field of a
                     signed 1-bit code is (code + 1) / 2. Never switchable.
    <layer>.scale    float32 (C,), positive
    <layer>.offset   float32 (C,), with has_offset

The weight at b bits is code_b * (scale * 2^(bits - b)) + offset with
code_b = min(round(code / 2^(bits - b)), 2^(b-1) - 1), b = 2 .. bits for a switchable layer, else b = bits alone.
All other tensors are the float rest, under their names in the network's state_dict. No field may be missing or unknown,
and no tensor may be left over beside a layer's.
"""

import math
from dataclasses import dataclass

from .container import MAX_DIMENSIONS, is_count

KEY, VERSION = "mbq_store", 1
ROUNDINGS = ("half_even", "half_up")
LAYOUTS = ("codes", "planes", "packed")
PACKED_BITS = (1, 2, 4)
SUFFIXES = (*LAYOUTS, "scale", "offset")


@dataclass(frozen=True)
class Layer:
    """One quantized layer of a store. Raises TypeError and ValueError for what cannot be one.

    name: of the layer's module or weight; its tensors are <name>.codes and so on.
    shape: the weight's, output channel first.
    bits: of the stored codes, 1 to 8.
    signed: codes in [-2^(bits-1), 2^(bits-1)-1] (-1 and +1 at 1 bit), else in [0, 2^bits - 1].
    layout: "codes", "planes" or "packed".
    switchable: every bit-width from 2 to `bits` is a rounding of the stored codes; else `bits` is the only one.
    has_offset: weights have a real offset per channel.
    module: type of the module, for information.
    """
    name: str
    shape: tuple[int, ...]
    bits: int = 8
    signed: bool = True
    layout: str = "codes"
    switchable: bool = True
    has_offset: bool = False
    module: str = ""

    def __post_init__(self):
        _check_kinds(self)
        _check_bits(self)

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def bit_widths(self) -> tuple[int, ...]:
        """Return bit-widths this layer can be had at, the highest first."""
        return tuple(range(self.bits, 1, -1)) if self.switchable else (self.bits,)

    @property
    def code_dtype(self) -> str:
        return "I8" if self.signed else "U8"

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of every tensor of this layer, by full name."""
        made = {self.layout: layout_of(self, self.layout, self.bits), "scale": ("F32", (self.rows,))}
        if self.has_offset:
            made["offset"] = ("F32", (self.rows,))
        return {f"{self.name}.{suffix}": value for suffix, value in made.items()}


@dataclass(frozen=True)
class Contents:
    """What the metadata of a store says. Raises ValueError for what cannot be."""
    rounding: str
    trained_bits: tuple[int, ...]
    layers: tuple[Layer, ...]

    def __post_init__(self):
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {self.rounding!r}")
        bits = self.trained_bits
        if not all(is_count(b) and 1 <= b <= 32 for b in bits) or len(set(bits)) != len(bits):
            raise ValueError(f"trained_bits must be different numbers from 1 to 32, got {str(bits)[:100]}")
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"layers must have different names, got {repeated!r} twice")


def layout_of(layer: Layer, layout: str, bits: int) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of the layer's codes at `bits` in `layout`."""
    if layout == "codes":
        return layer.code_dtype, layer.shape
    if layout == "planes":
        return "U8", (bits, layer.rows, -(-layer.columns // 8))
    return "U8", (layer.rows, -(-layer.columns * bits // 8))


def compact_layout(layer: Layer, bits: int) -> str:
    """Return the layout in which the layer's codes at `bits` take the fewest bytes."""
    possible = [*(["packed"] if bits in PACKED_BITS else []), "codes", *(["planes"] if bits > 1 else [])]
    return min(possible, key=lambda layout: math.prod(layout_of(layer, layout, bits)[1]))


def _check_kinds(layer: Layer) -> None:
    for name in ("name", "layout", "module"):
        value = getattr(layer, name)
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {str(value)[:100]}")
        value.encode()  # a lone surrogate is a ValueError
    for name in ("signed", "switchable", "has_offset"):
        if not isinstance(getattr(layer, name), bool):
            raise TypeError(f"{name} must be true or false, got {str(getattr(layer, name))[:100]}")
    if not layer.name:
        raise ValueError("name must not be empty")
    shape = layer.shape
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= MAX_DIMENSIONS or not all(map(is_count, shape)):
        raise ValueError(f"shape must be 1 to {MAX_DIMENSIONS} sizes, got {str(shape)[:100]}")
    if math.prod(max(size, 1) for size in shape) > 2**56:
        raise ValueError(f"shape must be of a possible size, got {str(shape)[:100]}")


def _check_bits(layer: Layer) -> None:
    if not is_count(layer.bits) or not 1 <= layer.bits <= 8:
        raise ValueError(f"bits must be between 1 and 8, got {str(layer.bits)[:100]}")
    if layer.layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layer.layout!r}")
    if layer.switchable and (not layer.signed or layer.bits < 2):
        raise ValueError("switchable must be false for unsigned codes and for 1 bit, got true")
    if layer.layout == "packed" and (layer.bits not in PACKED_BITS or layer.switchable):
        raise ValueError("layout must be codes or planes unless bits is 1, 2 or 4 and switchable is false, got packed")
    if layer.layout == "planes" and layer.bits == 1:
        raise ValueError("layout must be codes or packed at 1 bit, got planes")
