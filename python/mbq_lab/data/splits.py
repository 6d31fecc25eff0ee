"""What every layout gives: a Source with two Splits, images that are read one at a time, and their labels."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .errors import DataError


class Split(ABC):
    """The training or the test images of a data set, still encoded; labels: (N,) int64."""

    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, row: int) -> bytes | np.ndarray:
        """Return an encoded image, or pixels, (H, W) or (H, W, 3) uint8. Raises DataError when it cannot be read."""

    @abstractmethod
    def where(self, row: int) -> str:
        """Return the file of an image, and its row there, for errors."""

    @abstractmethod
    def select(self, rows: torch.Tensor) -> "Split":
        """Return the Split of these rows, in this order."""

    def windows(self, generator: torch.Generator) -> torch.Tensor | None:
        """Return (N,) number of the window a row is read in during an epoch, or None when any order is as good."""
        return None

    def check_streamable(self, memory_limit: int) -> None:
        """Raise DataError when a read would take far more memory than the image, and more than memory_limit."""
        return  # a read takes its image alone


@dataclass(frozen=True)
class ArraySplit(Split):
    """Images (N, C, H, W) uint8 in memory; origin: the file or folder they come from."""

    images: torch.Tensor
    labels: torch.Tensor
    origin: str

    def read(self, row):
        image = self.images[row].permute(1, 2, 0).contiguous().numpy()
        return image[:, :, 0] if image.shape[2] == 1 else image

    def where(self, row):
        return f"image {row} of {self.origin}"

    def select(self, rows):
        return ArraySplit(self.images[rows], self.labels[rows], self.origin)


@dataclass(frozen=True)
class FileSplit(Split):
    """One file an image; paths: array of encoded paths, which forked workers share where a list would be copied."""

    paths: np.ndarray
    labels: torch.Tensor

    @classmethod
    def of(cls, paths: list[Path | str], labels: list[int]) -> "FileSplit":
        return cls(np.array([os.fsencode(path) for path in paths], dtype=np.bytes_), torch.tensor(labels))

    def read(self, row):
        try:
            return Path(self.where(row)).read_bytes()
        except OSError as error:
            raise DataError(f"read: image must be a file that can be read, got {self.where(row)} ({error})") from error

    def where(self, row):
        return os.fsdecode(self.paths[row])

    def select(self, rows):
        return FileSplit(self.paths[rows.numpy()], self.labels[rows])


@dataclass(frozen=True)
class Source:
    """A data set as it lies on disk. Labels of both splits are in [0, classes); all classes occur in both."""

    name: str
    train: Split
    test: Split
    classes: int
    class_names: tuple[str, ...] | None
    channels: int = 3


def check_source(source: Source) -> Source:
    """Return `source`, if its labels are what it says. Raises DataError with the file and row, or the class, that is
    wrong."""
    for part, split in (("training", source.train), ("test", source.test)):
        wrong = ((split.labels < 0) | (split.labels >= source.classes)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise DataError(f"load_data: {part} label must be in 0..{source.classes - 1}, got {split.labels[row]} in "
                            f"{split.where(row)}")
        present = set(split.labels.unique().tolist())
        if len(present) < source.classes:
            gap = next(label for label in range(source.classes) if label not in present)
            raise DataError(f"load_data: {part} images must have labels 0..{source.classes - 1} without a gap, got "
                            f"none of label {gap} in {source.name}")
    return source
