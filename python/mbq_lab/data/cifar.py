"""CIFAR-10 and CIFAR-100 as their authors publish them: folders of pickles, read without running what is in them."""

import math
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .errors import DataError
from .splits import ArraySplit, Source, check_source


class Layout(NamedTuple):
    """The files of one of the two, and their keys."""

    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str


LAYOUTS = (
    Layout("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta",
           "labels", "label_names"),
    Layout("cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
)


def is_cifar(folder: Path) -> bool:
    """Return whether `folder` is, or holds, one of the folders of CIFAR."""
    return bool(_find(folder))


def read_cifar(folder: Path) -> Source:
    """Return the images (N, 3, 32, 32) of the folder or of the one in it.

    Raises DataError, naming the file, for one that is missing or broken, or a pickle with anything but uint8 arrays,
    strings, numbers, lists and dicts.
    """
    found = _find(folder)
    if len(found) > 1:
        raise DataError(f"read_cifar: folder must hold one data set, got {found[0][1].name} and {found[1][1].name} in "
                        f"{folder}: name one of them")
    layout, home = found[0]
    meta = _unpickle(home / layout.meta)
    names = meta.get(layout.names)
    if not isinstance(names, list) or not names:
        raise DataError(f"read_cifar: {layout.names} must be a list of names, got {type(names).__name__} in "
                        f"{home / layout.meta}")
    names = tuple(_text(name) for name in names)
    train = [_read_images(home / name, layout.labels, len(names)) for name in layout.train]
    test_images, test_labels = _read_images(home / layout.test, layout.labels, len(names))
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    return check_source(Source(folder.name, ArraySplit(images, labels, f"{home} (train)"),
                               ArraySplit(test_images, test_labels, str(home / layout.test)), len(names), names))


def _find(folder: Path) -> list[tuple[Layout, Path]]:
    """Return the layouts of `folder` itself, or of the folders in it, with the folder of their files."""
    itself = [(layout, folder) for layout in LAYOUTS
              if (folder / layout.meta).is_file() and not (folder / layout.train[0]).is_dir()]
    return itself or [(layout, folder / layout.folder) for layout in LAYOUTS if (folder / layout.folder).is_dir()]


def _read_images(path: Path, labels_key: str, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = _unpickle(path)
    data, labels = values.get("data"), values.get(labels_key)
    if not isinstance(data, PickledArray) or data.shape[1:] != (3072,) or not data.shape[0]:
        raise DataError(f"read_cifar: data must be an array (N, 3072), got {getattr(data, 'shape', data)!r:.80} in "
                        f"{path}")
    if not isinstance(labels, list) or len(labels) != data.shape[0]:
        raise DataError(f"read_cifar: {labels_key} must be a list of {data.shape[0]} labels, got "
                        f"{len(labels) if isinstance(labels, list) else type(labels).__name__} in {path}")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(f"read_cifar: label must be in 0..{classes - 1}, got {label!r} in row {row} of {path}")
    return torch.tensor(data.values()).reshape(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


def _unpickle(path: Path) -> dict:
    try:
        with path.open("rb") as file:
            values = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # a broken pickle raises whatever its opcodes lead into
        raise DataError(f"read_cifar: file must be a pickle of CIFAR, got {path} ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"read_cifar: file must hold a dict, got {type(values).__name__} in {path}")
    return {_text(key): value for key, value in values.items()}


def _text(value) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class PickledArray:
    """Stands in for numpy's array while unpickling, so that no code of numpy runs on what a stranger wrote."""

    shape, raw = (), b""

    def __setstate__(self, state):
        _, self.shape, dtype, column_major, self.raw = state
        if not isinstance(dtype, PickledUInt8) or column_major:
            raise pickle.UnpicklingError("arrays must be uint8, row by row")
        if not isinstance(self.raw, (bytes, bytearray)) or len(self.raw) != math.prod(self.shape):
            raise pickle.UnpicklingError(f"an array has not the values of its shape {self.shape}")

    def values(self) -> np.ndarray:
        return np.frombuffer(self.raw, dtype=np.uint8).reshape(self.shape)


class PickledUInt8:
    """Stands in for numpy's dtype; any other than uint8 is an error."""

    def __init__(self, code, *_):
        if _text(code).lstrip("|") != "u1":
            raise pickle.UnpicklingError(f"arrays must be uint8, got {_text(code)}")

    def __setstate__(self, state):
        """The byte order and the like: of one byte, nothing to say."""


def _empty_array(kind, shape, code) -> PickledArray:
    return PickledArray()


def _array_from_buffer(raw, dtype, shape, order) -> PickledArray:
    array = PickledArray()
    array.__setstate__((1, shape, dtype, order != "C", raw))
    return array


def _encode(text, encoding) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes must be written as latin1, got {encoding!r}")
    return text.encode("latin1")


NAMES = {
    ("numpy", "ndarray"): PickledArray, ("numpy", "dtype"): PickledUInt8, ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Knows arrays, and bytes as Python 3 writes them for Python 2; any other name in the file is an error."""

    def find_class(self, module, name):
        try:
            return NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds {module}.{name}") from None
