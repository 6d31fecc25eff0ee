"""What a store costs and loses at every bit-width."""

import math

import numpy as np

from .container import item_bytes
from .format import Layer, compact_layout, layout_of
from .store import Store, open

_FLOATS = ("F64", "F32", "F16", "BF16")


def inspect(path, *, threads: int | None = None) -> dict:
    """Return the sizes of a store and the error of every layer at every bit-width, as plain data for JSON.

    Returns:
        path, file_bytes, rounding, trained_bits;
        float32_bytes: of all tensors, were the layers and the float rest float32;
        bytes_at: by bit-width, bytes of all tensors after `switch` to it;
        layers: for each name, shape, module, layout, bits, switchable, weights (their number), bytes, and `error`: by
        bit-width the relative mean square error against the highest, sum((x_b - x_D)^2) / sum(x_D^2) (0 for zeros).

    Raises:
        StoreError: as for `open` and `Store.dequantize`.
    """
    with open(path, threads=threads) as store:
        layers = [store.layer(name) for name in store.layers]
        widths = sorted({bits for layer in layers if layer.switchable for bits in layer.bit_widths}, reverse=True)
        rest = [store.entry(name) for name in store.rest]
        stored = sum(entry.bytes for entry in rest)
        as_float = sum(4 * math.prod(entry.shape) if entry.dtype in _FLOATS else entry.bytes for entry in rest)
        return {
            "path": str(path), "file_bytes": store.path.stat().st_size, "rounding": store.rounding,
            "trained_bits": list(store.trained_bits),
            "float32_bytes": as_float + sum(4 * layer.rows * layer.columns for layer in layers),
            "bytes_at": {bits: stored + sum(_switched_bytes(layer, bits) for layer in layers) for bits in widths},
            "layers": [_layer(store, layer) for layer in layers]}


def _switched_bytes(layer: Layer, bits: int) -> int:
    bits = min(bits, layer.bits) if layer.switchable else layer.bits
    dtype, shape = layout_of(layer, compact_layout(layer, bits), bits)
    return math.prod(shape) * item_bytes(dtype) + 4 * layer.rows * (2 if layer.has_offset else 1)


def _layer(store: Store, layer: Layer) -> dict:
    high = store.dequantize(layer.name)
    power, errors = _squares(high), {}
    low = np.empty_like(high)
    for bits in layer.bit_widths:
        np.subtract(store.dequantize(layer.name, bits, out=low), high, out=low)
        errors[bits] = _squares(low) / power if power else 0.0
    return {"name": layer.name, "shape": list(layer.shape), "module": layer.module, "layout": layer.layout,
            "bits": layer.bits, "switchable": layer.switchable, "weights": high.size,
            "bytes": sum(store.entry(name).bytes for name in layer.tensors()), "error": errors}


def _squares(array: np.ndarray) -> float:
    """Sum of squares in double; numpy converts piece by piece."""
    return float(np.einsum("i,i->", array.reshape(-1), array.reshape(-1), dtype=np.float64))
