"""The metadata of a store: into JSON, and out of it once it agrees with the tensors of the file."""

import json
from dataclasses import asdict, fields

from .container import Entry, parse_json
from .errors import StoreError
from .format import KEY, SUFFIXES, VERSION, Contents, Layer


def to_metadata(contents: Contents) -> str:
    return json.dumps({"version": VERSION, **asdict(contents)}, separators=(",", ":"))


def read_contents(path, text: str | None, entries: dict[str, Entry]) -> Contents:
    """Return what the metadata says, once it agrees with the tensors of the file. Raises StoreError where it does not.
    """
    if text is None:
        raise StoreError(path, f"its metadata must have {KEY!r}: this is a safetensors file, but no store")
    try:
        value = parse_json(text)
    except ValueError as error:
        raise StoreError(path, f"metadata {KEY!r} must be JSON ({error})") from None
    version = value.get("version") if isinstance(value, dict) else None
    if version != VERSION or isinstance(version, bool):
        raise StoreError(path, f"version must be {VERSION}, got {str(version)[:100]}")
    if value.keys() != {"version", *(field.name for field in fields(Contents))}:
        raise StoreError(path, f"metadata must have exactly version, rounding, trained_bits and layers, got "
                               f"{', '.join(map(repr, value))[:200]}")
    if not isinstance(value["trained_bits"], list) or not isinstance(value["layers"], list):
        raise StoreError(path, "trained_bits and layers must be lists")
    layers = tuple(_read_layer(path, number, layer) for number, layer in enumerate(value["layers"]))
    try:
        contents = Contents(value["rounding"], tuple(value["trained_bits"]), layers)
    except (ValueError, TypeError) as error:
        raise StoreError(path, str(error)) from None
    for layer in layers:
        _check_tensors(path, layer, entries)
    return contents


def _read_layer(path, number: int, value) -> Layer:
    if not isinstance(value, dict) or value.keys() != {field.name for field in fields(Layer)}:
        raise StoreError(path, f"layers must be objects with exactly {', '.join(f.name for f in fields(Layer))}, "
                               f"number {number} is not")
    shape = value["shape"]
    try:
        return Layer(**{**value, "shape": tuple(shape) if isinstance(shape, list) else shape})
    except (TypeError, ValueError) as error:
        raise StoreError(path, str(error), str(value["name"])[:100]) from None


def _check_tensors(path, layer: Layer, entries: dict[str, Entry]) -> None:
    wanted = layer.tensors()
    for name, (dtype, shape) in wanted.items():
        if name not in entries:
            raise StoreError(path, f"tensor {name!r} is missing", layer.name)
        entry = entries[name]
        if (entry.dtype, entry.shape) != (dtype, shape):
            raise StoreError(path, f"{name!r} must be {dtype} of shape {shape}, got {entry.dtype} of shape "
                                   f"{entry.shape}", layer.name)
    for suffix in SUFFIXES:
        if (name := f"{layer.name}.{suffix}") in entries and name not in wanted:
            raise StoreError(path, f"tensor {name!r} is not one of this layer's", layer.name)
