"""Reading a store: one file, mapped into memory, every bit-width of every layer."""

import threading
from pathlib import Path

import numpy as np

from . import _core
from .checks import checked_bits, checked_out, checked_threads
from .container import DTYPES, Entry, map_file, read_header
from .errors import StoreError
from .format import KEY, PACKED_BITS, Layer, layout_of
from .metadata import read_contents
from .summary import table


def open(path, *, threads: int | None = None) -> "Store":
    """Open a store. Its header is read and checked; nothing else is read before it is asked for.

    Args:
        path: the safetensors file. It must not be cut off while it is open; `write` and `switch` never do that.
        threads: how many work on a layer; default: the processors this process may use.

    Raises:
        StoreError (a ValueError), naming the file, the layer and the reason, for a file that is not a whole store.
    """
    return Store(path, threads=threads)


class Store:
    """An open store. Its arrays are new and the caller's, except those of `tensor`. Use from several threads is safe.

    Attributes:
        layers: names of the quantized layers.
        rest: names of the other tensors.
        rounding: "half_even" or "half_up".
        trained_bits: the bit-widths the network was trained at.
        metadata: what else the file's metadata says, strings by name.
        bytes_read: bytes of tensors that calls so far have read from the file.
    """

    def __init__(self, path, *, threads: int | None = None):
        self.path = Path(path)
        self.threads = checked_threads("open", threads)
        self._data = map_file(self.path)
        self._entries, metadata = read_header(path, self._data)
        self._contents = read_contents(path, metadata.pop(KEY, None), self._entries)
        self._layers = {layer.name: layer for layer in self._contents.layers}
        used = {name for layer in self._contents.layers for name in layer.tensors()}
        self._rest = {name: entry for name, entry in self._entries.items() if name not in used}
        self.metadata = metadata
        self.bytes_read, self._lock = 0, threading.Lock()

    layers = property(lambda self: tuple(self._layers))
    rest = property(lambda self: tuple(self._rest))
    rounding = property(lambda self: self._contents.rounding)
    trained_bits = property(lambda self: self._contents.trained_bits)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Let go of the file; what `tensor` gave stays good, and the file mapped as long as it is in use."""
        self._data = None

    def layer(self, name: str) -> Layer:
        """Return what the store says about a layer. Raises ValueError for a name that is none."""
        if name not in self._layers:
            raise ValueError(f"layer: name must be a layer of {self.path}, got {name!r}")
        return self._layers[name]

    def codes(self, layer: str, bits: int | None = None, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return codes of a layer: int8 (uint8 unsigned), in the weight's shape.

        code = min(round(stored / 2^(D - bits)), 2^(bits-1) - 1), D the layer's highest bit-width (Huang et al., 2025,
        arXiv 2502.01199, eq. 2-3).

        Args:
            layer: its name.
            bits: 2 to D, D if None; a layer that is not switchable has D alone.
            out: a contiguous array of that dtype and shape to write to.

        Raises:
            ValueError: there is no such layer or bit-width; TypeError: `bits` or `out` is of the wrong type.
            StoreError: a code of the file is not in its range.
        """
        return self.recode(layer, checked_bits("codes", self.layer(layer), bits), "codes", out)

    def packed(self, layer: str, bits: int | None = None, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return packed codes of a layer, as 1, 2, 4 or 8 bits: uint8 (C, ceil(n * bits / 8)), low bits of a byte
        first.

        A row is an output channel of n codes, filled up to a byte with zeros; fields are two's complement (a signed
        1-bit code: (code + 1) / 2). Arguments and errors as for `codes`.
        """
        bits = checked_bits("packed", self.layer(layer), bits)
        if bits not in (*PACKED_BITS, 8):
            raise ValueError(f"packed: bits must be 1, 2, 4 or 8 (others cross bytes), got {bits}")
        return self.recode(layer, bits, "packed", out)

    def dequantize(self, layer: str, bits: int | None = None, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return weights of a layer as the network computed with them: float32, in the weight's shape.

        x_hat = code * (scale * 2^(D - bits)) + offset. Arguments and errors as for `codes`.

        Raises:
            StoreError: also for a scale that is not positive and finite.
        """
        bits = checked_bits("dequantize", described := self.layer(layer), bits)
        scale = self.scale(layer, bits)
        offset = self.offset(layer) if described.has_offset else None
        out = checked_out("dequantize", out, np.dtype(np.float32), described.shape)
        source, arguments = self._source(described, bits)
        self._check_codes(described, _core.dequantize(source, out=out, scale=scale, offset=offset, **arguments))
        return out

    def scale(self, layer: str, bits: int | None = None) -> np.ndarray:
        """Return scales of a layer at `bits`, float32 (C,): stored scale * 2^(D - bits)."""
        bits = checked_bits("scale", described := self.layer(layer), bits)
        with np.errstate(over="ignore", invalid="ignore"):
            scale = self._parameter(described, "scale") * np.float32(2 ** (described.bits - bits))
        if not ((scale > 0) & (scale < np.inf)).all():
            channel = int(np.argmin((scale > 0) & (scale < np.inf)))
            raise StoreError(self.path, f"scale must be positive and finite, got {scale[channel]} in channel {channel}",
                             layer)
        return scale

    def offset(self, layer: str) -> np.ndarray:
        """Return real offsets of a layer, float32 (C,); zeros where it has none."""
        described = self.layer(layer)
        if not described.has_offset:
            return np.zeros(described.rows, np.float32)
        offset = self._parameter(described, "offset")
        if not np.isfinite(offset).all():
            raise StoreError(self.path, "offset must be finite", layer)
        return offset

    def tensor(self, name: str, *, widen: bool = True) -> np.ndarray:
        """Return a tensor of the rest, read-only and in the file's memory; bfloat16 as a new array of float32.

        Args:
            name: one of `rest`.
            widen: False: bfloat16 as its bits in uint16, in the file's memory.
        """
        entry = self._rest.get(name)
        if entry is None:
            raise ValueError(f"tensor: name must be one of the rest of {self.path}, got {name!r}")
        stored = self._bytes(entry.begin, entry.end).view(DTYPES[entry.dtype]).reshape(entry.shape)
        if entry.dtype != "BF16" or not widen:
            return stored
        return (stored.astype(np.uint32) << 16).view(np.float32)

    def entry(self, name: str) -> Entry:
        """Return dtype (as safetensors calls it), shape and place of any tensor of the file, by its full name."""
        if name not in self._entries:
            raise ValueError(f"entry: name must be a tensor of {self.path}, got {name!r}")
        return self._entries[name]

    def summary(self) -> str:
        """Return a table of the layers, one a line, below the sizes of the file."""
        return table(self)

    def recode(self, layer: str, bits: int, layout: str, out: np.ndarray | None = None) -> np.ndarray:
        """Return codes of a layer at `bits` in any layout of mbq_store.format; what `codes` and `packed` rest on."""
        described = self.layer(layer)
        dtype, shape = layout_of(described, layout, bits)
        out = checked_out("recode", out, np.dtype(DTYPES[dtype]), shape)
        source, arguments = self._source(described, bits)
        to_layout = "codes" if bits == 8 and layout == "packed" else layout  # the same bytes
        self._check_codes(described, _core.recode(source, out=out, to_layout=to_layout, **arguments))
        return out

    def _source(self, layer: Layer, bits: int):
        """Return the bytes of the file that `bits` needs, and the core's arguments for them."""
        entry = self._entries[f"{layer.name}.{layer.layout}"]
        from_bits, end = layer.bits, entry.end
        if layer.layout == "planes" and self.rounding == "half_up":
            from_bits = min(bits + 1, layer.bits)  # what half_up adds does not carry from lower planes
            end = entry.begin + entry.bytes // layer.bits * from_bits
        return self._bytes(entry.begin, end), {
            "from_layout": layer.layout, "from_bits": from_bits, "to_bits": bits, "rows": layer.rows,
            "columns": layer.columns, "signed": layer.signed, "rounding": self.rounding, "threads": self.threads}

    def _parameter(self, layer: Layer, suffix: str) -> np.ndarray:
        entry = self._entries[f"{layer.name}.{suffix}"]
        return self._bytes(entry.begin, entry.end).view("<f4").copy()

    def _bytes(self, begin: int, end: int) -> np.ndarray:
        if self._data is None:
            raise ValueError(f"store: {self.path} must be open, got a closed store")
        with self._lock:
            self.bytes_read += end - begin
        return self._data[begin:end]

    def _check_codes(self, layer: Layer, good: bool) -> None:
        if not good:
            raise StoreError(self.path, f"codes must be {'signed' if layer.signed else 'unsigned'} codes of "
                                        f"{layer.bits} bits, got others", layer.name)
