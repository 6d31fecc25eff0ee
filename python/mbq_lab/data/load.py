"""load_data: a data set by its name, in memory when it fits there, otherwise streamed."""

from dataclasses import replace

import torch

from .augment import RESIZED_CROP, parse_augment
from .batches import Data
from .images import decode_image
from .memory import MemoryData
from .sources import open_source
from .splits import Source, Split
from .stream import StreamData

STREAMED_SIZE = (224, 224)


def load_data(name, *, augment: str = "auto", train_limit: int | None = None, test_limit: int | None = None,
              image_size: int | tuple[int, int] | None = None, workers: int = 0, memory_limit: int = 2 << 30,
              device: str | torch.device = "cpu") -> Data:
    """Load a data set: `digits` (1797 8 x 8 images inside scikit-learn), a folder, or one under $MBQ_DATA by its name.

    A folder holds parquet files, CIFAR's pickles, TinyImageNet or a folder of images for each class.

    Args:
        augment: `none`, or some of crop, flip, cutout, resized-crop with commas between; `auto`: none for the digits,
            crop,flip in memory, resized-crop,flip streamed. With resized-crop the data are always streamed.
        train_limit, test_limit: images to keep, as many of every class as its share, always the same ones.
        image_size: (height, width), or both in one; default the images' own, or 224 when they are streamed.
        workers: processes that decode streamed images; 0 decodes in this one. Any number gives the same batches.
        memory_limit: bytes of decoded images up to which they are kept in memory, on `device`.

    Raises:
        ValueError: an argument is out of range, or no data set has this name (with the nearest one). DataError, a
        ValueError: a file is broken or missing; its name and where possible the row are in the message.
    """
    size = _check_size(image_size)
    for argument, value in (("workers", workers), ("memory_limit", memory_limit)):
        if value < 0:
            raise ValueError(f"load_data: {argument} must not be negative, got {value}")
    names = None if augment == "auto" else parse_augment(augment)
    source = open_source(name)
    source = replace(source, train=_limit(source.train, "train_limit", train_limit, source.classes),
                     test=_limit(source.test, "test_limit", test_limit, source.classes))
    device, own_size = torch.device(device), size or _size_of_first(source.train)
    needed = (len(source.train) + len(source.test)) * source.channels * own_size[0] * own_size[1]
    if needed <= memory_limit and RESIZED_CROP not in (names or ()):
        names = names if names is not None else ("crop", "flip") if source.channels == 3 else ()
        return MemoryData(source, augment=names, image_size=own_size, resize=size is not None, device=device)
    _check_streamable(source, needed, memory_limit)
    names = names if names is not None else (RESIZED_CROP, "flip")
    return StreamData(source, augment=names, image_size=size or STREAMED_SIZE, workers=workers, device=device)


def stratified(labels: torch.Tensor, limit: int) -> torch.Tensor:
    """Return (limit,) rows in ascending order: at least one of every class, otherwise every class by its share.

    Always the same rows; those of a smaller limit are among those of a larger one.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    share = rank.double() / counts.repeat_interleave(counts)  # 0 for the first of every class
    return by_class[share.argsort(stable=True)[:limit]].sort().values


def _limit(split: Split, argument: str, limit: int | None, classes: int) -> Split:
    if limit is None:
        return split
    if not classes <= limit <= len(split):
        raise ValueError(f"load_data: {argument} must be in {classes} (classes)..{len(split)} (images), got {limit}")
    return split.select(stratified(split.labels, limit))


def _check_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"load_data: image_size must be at least 1, got {size}")
    return height, width


def _size_of_first(split: Split) -> tuple[int, int]:
    image = decode_image(split.read(0), split.where(0))
    return image.height, image.width


def _check_streamable(source: Source, needed: int, memory_limit: int) -> None:
    if source.channels != 3:
        raise ValueError(f"load_data: only images of three channels can be streamed, got {source.name}; leave out "
                         f"{RESIZED_CROP} and give a memory_limit of {needed} or more")
    for split in (source.train, source.test):
        split.check_streamable(memory_limit)
