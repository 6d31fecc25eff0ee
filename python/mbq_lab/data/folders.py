"""Folders of image files: train/<class>/... and val, test or validation/<class>/..., as for ImageNet."""

import os
from pathlib import Path

from .errors import DataError, printable
from .splits import FileSplit, Source, check_source

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("val", "test", "validation", "valid", "testing")  # the first there is with folders in it
_LEFT_BEHIND = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found", "icon\r",
                "system volume information"}  # by operating systems and network drives


def is_image_folder(folder: Path) -> bool:
    """Return whether `folder` holds a folder train or training."""
    return _split_folder(folder, TRAIN_FOLDERS) is not None


def read_image_folder(folder: Path) -> Source:
    """Read a folder whose classes are the folders in train, in the order of their names; images are in them at any
    depth.

    Names of the two parts are those of TRAIN_FOLDERS and TEST_FOLDERS, in small or large letters. At every depth names
    that begin with a dot and what operating systems leave behind (Thumbs.db, desktop.ini, __MACOSX) are passed over,
    and links are followed.

    Raises DataError, naming the file or folder, for classes that differ between train and test, for a class without
    images, for a part whose images have no labels, for a file that is no image, and for a link that leads to nothing or
    round in a circle.
    """
    train, test = (_split_folder(folder, names) for names in (TRAIN_FOLDERS, TEST_FOLDERS))
    if test is None:
        raise DataError(f"read_image_folder: folder must hold {', '.join(TEST_FOLDERS)}, got none of them in {folder}")
    classes, test_classes = (_class_folders(part) for part in (train, test))
    for name in sorted(set(classes) ^ set(test_classes)):
        raise DataError(f"read_image_folder: train and test must have the same classes, got {name!r} only in "
                        f"{train if name in classes else test}")
    train_split, test_split = (class_files([part / name for name in classes]) for part in (train, test))
    return check_source(Source(folder.name, train_split, test_split, len(classes), tuple(map(printable, classes))))


def class_files(folders: list[Path]) -> FileSplit:
    """Return all images in `folders`, the first of which holds those of class 0. Raises DataError for one without any.
    """
    paths, labels = [], []
    for label, folder in enumerate(folders):
        found = image_files(folder)
        paths += found
        labels += [label] * len(found)
    return FileSplit.of(paths, labels)


def image_files(folder: Path) -> list[str]:
    """Return the images in `folder` at any depth, in the order of their paths. Raises DataError when there are none."""
    suffixes, paths = _image_suffixes(), sorted(_files(folder, ()))
    for path in paths:
        if os.path.splitext(path)[1].lower() not in suffixes:
            raise DataError(f"image_files: files must be images with a suffix that Pillow knows, got {path}")
    if not paths:
        raise DataError(f"image_files: folder must hold images, got none in {folder}")
    return paths


def _files(folder, above: tuple[str, ...]):
    """Yield paths of the files in `folder` and below; above: the real paths of the folders that it lies in."""
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"image_files: links must not lead to a folder they lie in, got {folder}")
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _files(entry.path, (*above, real))
        elif entry.is_file():
            yield entry.path
        else:
            kind = "a link that leads to nothing" if entry.is_symlink() else "neither a file nor a folder"
            raise DataError(f"image_files: image must be a file that can be read, got {entry.path}, {kind}")


def _entries(folder) -> list[os.DirEntry]:
    """Return what lies in a folder, in the order of the names, without what is passed over."""
    try:
        with os.scandir(folder) as entries:
            kept = sorted((entry for entry in entries if not passed_over(entry.name)), key=lambda entry: entry.name)
        for entry in kept:
            entry.is_dir()  # an error now, with its name, for links that lead to each other
        return kept
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"image_files: folder must be one that can be read, got {folder} ({error})") from error


def passed_over(name: str) -> bool:
    """Return whether a name in a folder of images is hidden, or an operating system's."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def _split_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first folder of these names that holds folders, or just the first; names as they are before others."""
    found = [entry for entry in _entries(folder) if entry.is_dir() and entry.name.lower() in names]
    found.sort(key=lambda entry: (names.index(entry.name.lower()), entry.name not in names, entry.name))
    with_classes = [entry for entry in found if any(inner.is_dir() for inner in _entries(entry.path))]
    return next((Path(entry.path) for entry in with_classes or found), None)


def _class_folders(folder: Path) -> list[str]:
    entries = _entries(folder)
    for entry in entries:
        if not entry.is_dir():
            raise DataError(f"read_image_folder: images must lie in a folder of their class, got {entry.path}")
    if not entries:
        raise DataError(f"read_image_folder: folder must hold a folder for every class, got none in {folder}")
    return [entry.name for entry in entries]


def _image_suffixes() -> set[str]:
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
