"""Folders of image files: train/<class>/... and val, test or validation/<class>/..., as for ImageNet."""

import os
from pathlib import Path

from .errors import DataError
from .splits import FileSplit, Source, check_source

TEST_FOLDERS = ("val", "test", "validation")  # the first there is


def is_image_folder(folder: Path) -> bool:
    """Whether `folder` holds a folder train."""
    return (folder / "train").is_dir()


def read_image_folder(folder: Path) -> Source:
    """Classes are the folders in train, in the order of their names; images are in them at any depth.

    Raises DataError, naming the file or folder, for classes that differ between train and test, for a class without
    images, and for a file that is no image. Names that begin with a dot are passed over.
    """
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if test is None:
        raise DataError(f"read_image_folder: folder must hold {', '.join(TEST_FOLDERS)}, got none of them in {folder}")
    classes, test_classes = (_class_folders(part) for part in (folder / "train", test))
    for name in sorted(set(classes) ^ set(test_classes)):
        raise DataError(f"read_image_folder: train and test must have the same classes, got {name!r} only in "
                        f"{folder / 'train' if name in classes else test}")
    train_split, test_split = (class_files([part / name for name in classes]) for part in (folder / "train", test))
    return check_source(Source(folder.name, train_split, test_split, len(classes), tuple(classes)))


def class_files(folders: list[Path]) -> FileSplit:
    """All images in `folders`, the first of which holds those of class 0. Raises DataError for one without any."""
    paths, labels = [], []
    for label, folder in enumerate(folders):
        found = image_files(folder)
        paths += found
        labels += [label] * len(found)
    return FileSplit.of(paths, labels)


def image_files(folder: Path) -> list[str]:
    """The images in `folder` at any depth, in the order of their paths. Raises DataError when there are none."""
    suffixes = _image_suffixes()
    paths = sorted(os.path.join(home, name) for home, _, names in os.walk(folder, followlinks=True)
                   for name in names if not name.startswith("."))
    for path in paths:
        if os.path.splitext(path)[1].lower() not in suffixes:
            raise DataError(f"image_files: files must be images with a suffix that Pillow knows, got {path}")
    if not paths:
        raise DataError(f"image_files: folder must hold images, got none in {folder}")
    return paths


def _class_folders(folder: Path) -> list[str]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if not entry.is_dir():
            raise DataError(f"read_image_folder: images must lie in a folder of their class, got {entry}")
    if not entries:
        raise DataError(f"read_image_folder: folder must hold a folder for every class, got none in {folder}")
    return [entry.name for entry in entries]


def _image_suffixes() -> set[str]:
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
