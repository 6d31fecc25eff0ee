"""The safetensors file around a store: a strict reader of its header and an atomic writer.

The header is parsed here, not by the safetensors package, because names must not repeat, data must cover the file
without gaps or overlaps, and nothing may be allocated that the file's own length does not pay for.
"""

import contextlib
import json
import math
import mmap
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import StoreError

# bfloat16 has no numpy dtype: its bits
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
          "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1"}
MAX_HEADER = 100_000_000  # of every reader of safetensors
MAX_DIMENSIONS = 32  # of older numpys
RESERVED = "__metadata__"


class Entry(NamedTuple):
    """A tensor of the file: safetensors dtype, shape, and its bytes [begin, end) counted from the file's start."""
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.begin


class Tensor(NamedTuple):
    """A tensor to write; `data()` gives its contiguous bytes when their turn comes."""
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * item_bytes(self.dtype)


def item_bytes(dtype: str) -> int:
    return np.dtype(DTYPES[dtype]).itemsize


def is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def parse_json(text: str):
    """Parse strict JSON. Raises ValueError for a repeated key, NaN or infinity, and for nesting without end."""
    def unique(pairs):
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice")
        return made

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def map_file(path: Path) -> np.ndarray:
    """Return the file's bytes, none of them read yet."""
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        raise StoreError(path, f"cannot be read ({error})") from None


def read_header(path, data: np.ndarray) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the tensors by name and the metadata of a whole file's bytes. Raises StoreError where they are not
    safetensors."""
    size = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or size > min(len(data) - 8, MAX_HEADER):
        raise StoreError(path, f"its header must end within the file's {len(data)} bytes, got {size} bytes of header")
    try:
        header = parse_json(data[8:8 + size].tobytes().decode("utf-8"))
    except ValueError as error:
        raise StoreError(path, f"its header must be JSON ({error})") from None
    if not isinstance(header, dict):
        raise StoreError(path, f"its header must be a JSON object, got {type(header).__name__}")
    metadata = header.pop(RESERVED, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise StoreError(path, f"{RESERVED} must map names to strings")
    entries = {name: _entry(path, name, value, 8 + size) for name, value in header.items()}
    _check_cover(path, entries, 8 + size, len(data))
    return entries, metadata


def _entry(path, name: str, value, start: int) -> Entry:
    def fail(reason):
        raise StoreError(path, f"tensor {name!r}: {reason}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        fail("must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        fail(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(is_count, shape)):
        fail(f"shape must be a list of at most {MAX_DIMENSIONS} sizes, got {str(shape)[:100]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        fail(f"data_offsets must be two positions, got {str(offsets)[:100]}")
    # numpy counts the elements of an empty array without its zeros
    if math.prod(max(size, 1) for size in shape) > 2**56:
        fail(f"shape must be of a possible size, got {str(shape)[:100]}")
    if offsets[1] - offsets[0] != math.prod(shape) * item_bytes(dtype):
        fail(f"shape {shape} of {dtype} does not fill data_offsets {offsets}")
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _check_cover(path, entries: dict[str, Entry], start: int, end: int) -> None:
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != start:
            raise StoreError(path, f"tensor {name!r}: must begin where the one before ends, at byte {start}, "
                                   f"got {entry.begin}")
        start = entry.end
    if start != end:
        raise StoreError(path, f"its tensors must end with the file, at byte {end}, got {start} (truncated?)")


def write_file(path, tensors: list[Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file: whole, or on any error not at all, with the old file as it was."""
    tensors = sorted(tensors, key=lambda tensor: -item_bytes(tensor.dtype))  # each lies at a multiple of its items
    header, end = {RESERVED: metadata}, 0
    for tensor in tensors:
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape),
                               "data_offsets": [end, end + tensor.bytes]}
        end += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _replacing(Path(path)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            data = tensor.data()
            assert data.nbytes == tensor.bytes, tensor.name
            file.write(data.reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def _replacing(path: Path):
    """Yield a new file in the same folder; on success it is on the disk and replaces `path`, on any error it is
    removed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
