"""A data set by its name: the digits, or a folder whose layout is recognised by what is in it."""

import os
from pathlib import Path

from mbq_train._names import look_up

from .cifar import is_cifar, read_cifar
from .digits import read_digits
from .errors import DataError
from .folders import is_image_folder, read_image_folder
from .parquet import is_parquet, read_parquet
from .splits import Source
from .tiny_imagenet import is_tiny_imagenet, read_tiny_imagenet

ROOT_VARIABLE = "MBQ_DATA"
LAYOUTS = (  # in this order: TinyImageNet has a folder train too
    (is_parquet, read_parquet), (is_cifar, read_cifar), (is_tiny_imagenet, read_tiny_imagenet),
    (is_image_folder, read_image_folder),
)


def open_source(name) -> Source:
    """Return the Source of `digits`, of a folder, or of the folder of that name under MBQ_DATA, in this order.

    Raises ValueError for an unknown name, with the nearest one; DataError for a folder of no known layout.
    """
    if str(name) == "digits":
        return read_digits()
    folder = _find_folder(name)
    for recognises, read in LAYOUTS:
        if recognises(folder):
            return read(folder)
    inside = ", ".join(sorted(os.listdir(folder))[:5]) or "nothing"
    raise DataError("load_data: folder must hold train*.parquet, cifar-10-batches-py, cifar-100-python, wnids.txt or "
                    f"train (with val or test beside it), got {folder} with {inside}")


def _find_folder(name) -> Path:
    path = Path(name)
    if path.is_dir():
        return Path(os.path.abspath(path))  # "." gets its name
    if path.exists():
        raise ValueError(f"load_data: name must be a folder, got a file, {path}")
    root = os.environ.get(ROOT_VARIABLE)
    where = f"{ROOT_VARIABLE} is {root or 'not set'}"
    if len(path.parts) > 1:
        raise ValueError(f"load_data: no such folder, {path} ({where})")
    try:
        return look_up("load_data", {"digits": None, **_folders_under_root()}, str(name))
    except ValueError as error:
        raise ValueError(str(error) if root else f"{error}; {where}") from None


def _folders_under_root() -> dict[str, Path]:
    root = os.environ.get(ROOT_VARIABLE)
    if not root:
        return {}
    if not Path(root).is_dir():
        raise ValueError(f"load_data: {ROOT_VARIABLE} must be a folder, got {root}")
    return {entry.name: entry for entry in Path(root).iterdir() if entry.is_dir()}
