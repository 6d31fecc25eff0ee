"""TinyImageNet as it is published: wnids.txt, train/<wnid>/images, val/images and val/val_annotations.txt."""

from pathlib import Path

from .errors import DataError
from .folders import class_files, image_files, passed_over
from .splits import FileSplit, Source, check_source


def is_tiny_imagenet(folder: Path) -> bool:
    """Return whether `folder` holds wnids.txt or val/val_annotations.txt."""
    return (folder / "wnids.txt").is_file() or (folder / "val" / "val_annotations.txt").is_file()


def read_tiny_imagenet(folder: Path) -> Source:
    """Read TinyImageNet: classes are the WordNet ids of wnids.txt, sorted; their names are from words.txt where it is
    there.

    val is for testing: the images in test have no labels. Raises DataError, naming the file and line, for an unknown
    WordNet id, an annotation without its image, an image without its annotation, or a class without images.
    """
    wnids = sorted(_lines(folder / "wnids.txt"))
    if not wnids or len(set(wnids)) < len(wnids):
        raise DataError(f"read_tiny_imagenet: WordNet ids must be there and differ, got {len(wnids)}, "
                        f"{len(set(wnids))} different, in {folder / 'wnids.txt'}")
    for entry in sorted((folder / "train").glob("*")):
        if entry.name not in wnids and not passed_over(entry.name):
            raise DataError(f"read_tiny_imagenet: class must be in wnids.txt, got {entry}")
    train = class_files([folder / "train" / wnid / "images" for wnid in wnids])
    test = _annotated(folder / "val", {wnid: label for label, wnid in enumerate(wnids)})
    return check_source(Source(folder.name, train, test, len(wnids), _names(folder / "words.txt", wnids)))


def _annotated(folder: Path, label_of: dict[str, int]) -> FileSplit:
    """Return the images in folder/images with the labels in val_annotations.txt: name, WordNet id and a box on a line.
    """
    annotations, labels = folder / "val_annotations.txt", {}
    images = set(image_files(folder / "images"))
    for number, line in enumerate(_lines(annotations), start=1):
        name, _, rest = line.partition("\t")
        wnid, path = rest.partition("\t")[0], str(folder / "images" / name)
        if wnid not in label_of:
            raise DataError(f"read_tiny_imagenet: class must be in wnids.txt, got {wnid!r} in line {number} of "
                            f"{annotations}")
        if path not in images or path in labels:
            raise DataError(f"read_tiny_imagenet: a line must be of an image of its own in {folder / 'images'}, got "
                            f"{name!r} in line {number} of {annotations}")
        labels[path] = label_of[wnid]
    for path in sorted(images - labels.keys()):
        raise DataError(f"read_tiny_imagenet: image must have a line in {annotations}, got {path}")
    return FileSplit.of(list(labels), list(labels.values()))


def _names(path: Path, wnids: list[str]) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(wnids)
    names = dict(line.split("\t", 1) for line in _lines(path) if "\t" in line)
    return tuple(names.get(wnid, wnid) for wnid in wnids)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"read_tiny_imagenet: file must be readable text, got {path} ({error})") from error
