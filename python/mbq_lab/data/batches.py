"""Data: batches of images, each a pure function of the seed, the epoch and its number in the epoch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from mbq_train.batches import Batch, seeded

from .splits import Source


class Data(ABC):
    """A classification data set: training batches in any epoch's order, from any batch on, and test batches.

    name; classes; class_names: tuple of str or None; in_channels; image_size: (H, W); train_size, test_size: images;
    augment: names of the augmentations of training images; device: of the batches.
    """

    def __init__(self, source: Source, *, augment: tuple[str, ...], image_size: tuple[int, int],
                 mean: torch.Tensor, deviation: torch.Tensor, device: torch.device):
        """mean, deviation: (C,) float64 of the pixels, in 0..255."""
        self.name, self.classes, self.class_names = source.name, source.classes, source.class_names
        self.in_channels, self.image_size = source.channels, image_size
        self.train_size, self.test_size = len(source.train), len(source.test)
        self.augment, self.device = augment, device
        self._mean, self._deviation = (value.float().reshape(1, -1, 1, 1).to(device) for value in (mean, deviation))

    def steps(self, batch_size: int, *, images: int | None = None, world: int = 1) -> int:
        """Return how many batches an epoch of `images` training images [all] has. A last one with fewer images than
        ranks is none."""
        _check_count("train_batches", "world", world, 1)
        _check_count("train_batches", "batch_size", batch_size, 1)
        if batch_size % world:
            raise ValueError(f"train_batches: batch_size must be a multiple of world = {world}, got {batch_size}")
        full, rest = divmod(self.train_size if images is None else images, batch_size)
        return full + (rest >= world)

    def train_batches(self, batch_size: int, *, seed: int, epoch: int, start: int = 0,
                      rows: torch.Tensor | None = None, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Return the batches of one epoch, every image once, in an order and with augmentations drawn from (seed,
        epoch).

        Args:
            batch_size: images in a batch over all ranks; the last batch may have fewer.
            start: number of the first batch to give; those before it cost nothing.
            rows: (M,) int64 - the training images of this epoch, which may repeat; default all.
            rank, world: this process takes images rank, rank + world, ... of each batch, which is the same in any
                world. The last batch is cut to a multiple of `world`, so that all ranks have as many.

        Raises ValueError for an argument out of range; DataError, naming the file and row, for an image that cannot
        be read; RuntimeError when a worker process dies.
        """
        rows = self._check_rows(rows)
        steps = self.steps(batch_size, images=len(rows), world=world)
        _check_range("train_batches", "rank", rank, 0, world - 1)
        if not steps:
            raise ValueError(f"train_batches: rows must be at least world = {world}, got {len(rows)}")
        _check_range("train_batches", "start", start, 0, steps)
        generator = seeded("order", seed, epoch)
        order = self._arrange(rows[torch.randperm(len(rows), generator=generator)], generator)
        batches = list(order.split(batch_size)[:steps])
        batches[-1] = batches[-1][:len(batches[-1]) // world * world]
        return self._train(tuple(batches), seed, epoch, start, slice(rank, None, world))

    @abstractmethod
    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Return all test images once, in their order, not augmented. Raises as train_batches."""

    def still_batches(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Return every training image once, in their order, as test images are: not augmented. With several processes
        batch number rank, rank + world, ... Raises as train_batches."""
        _check_count("still_batches", "batch_size", batch_size, 1)
        _check_range("still_batches", "rank", rank, 0, world - 1)
        return self._still(torch.arange(self.train_size).split(batch_size)[rank::world])

    @abstractmethod
    def _still(self, batches: tuple[torch.Tensor, ...]):
        """Return batches of these rows of the training set."""

    @property
    @abstractmethod
    def train_labels(self) -> torch.Tensor:
        """Return (train_size,) int64, on the CPU."""

    @abstractmethod
    def _train(self, batches: tuple[torch.Tensor, ...], seed: int, epoch: int, start: int, mine: slice):
        """Yield the batches from `start` on; batches: the rows of all of an epoch; mine: this rank's part of each."""

    def _arrange(self, order: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `order`, changed where the images cannot be had in any order as well."""
        return order

    def _test_rows(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        _check_count("test_batches", "batch_size", batch_size, 1)
        return torch.arange(self.test_size).split(batch_size)

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() - self._mean) / self._deviation

    def _check_rows(self, rows: torch.Tensor | None) -> torch.Tensor:
        if rows is None:
            return torch.arange(self.train_size)
        if not isinstance(rows, torch.Tensor) or rows.dtype != torch.int64:
            raise TypeError("train_batches: rows must be an int64 tensor, got "
                            f"{getattr(rows, 'dtype', type(rows).__name__)}")
        if rows.ndim != 1 or not len(rows):
            raise ValueError(f"train_batches: rows must have one dimension and an element, got {tuple(rows.shape)}")
        rows = rows.cpu()
        for row in (rows.min(), rows.max()):
            _check_range("train_batches", "rows", int(row), 0, self.train_size - 1)
        return rows


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `tensor` on `device`, through pinned memory, so that the host does not wait."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _check_count(function: str, name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {value}")


def _check_range(function: str, name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{function}: {name} must be in {least}..{most}, got {value}")
