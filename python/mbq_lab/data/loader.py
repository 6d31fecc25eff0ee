"""The user's own data sets: two map-style data sets of PyTorch, or the DataLoaders over them, as a Data."""

import contextlib
import math
import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from mbq_train.batches import Batch, seeded

from .batches import Data, send
from .splits import Source


def data_of(train, test, *, classes: int | None = None, device: str | torch.device = "cpu") -> Data:
    """Return a Data of two map-style data sets whose items are (image, label), or of the DataLoaders over them.

    Images must be float tensors (C, H, W) of one size, as the network takes them; labels integers in 0..classes - 1.
    Batches come in the order of every other Data, drawn from (seed, epoch), in the batch size of the run: of a
    DataLoader its data set, collate_fn, workers and worker_init_fn are used, its sampler and batch size are not.
    Python's, NumPy's and torch's random numbers are seeded for every image, so that random transforms are the same in
    any number of workers and processes, and after `resume_run`.

    Args:
        classes: how many [the length of the data set's list `classes`, or one more than the largest training label:
            where the data set has no `targets`, or gives others, all images are read once to find it].
        device: of the batches.

    Raises TypeError, ValueError where one of the two cannot be used in this way.
    """
    parts = {"train": _Reader.of("train", train), "test": _Reader.of("test", test)}
    images, _ = parts["train"].batch([0])
    names = getattr(parts["train"].images, "classes", None)
    names = names if isinstance(names, (list, tuple)) else None
    labels = _labels(parts["train"]) if classes is None and names is None else None
    count = classes or (len(names) if names is not None else int(labels.max()) + 1)
    for reader in parts.values():
        reader.classes = count
        if (known := _known_labels(reader)) is not None:
            reader.check_labels(known)
    source = Source(type(parts["train"].images).__name__, parts["train"], parts["test"], count,
                    tuple(map(str, names)) if names is not None and len(names) == count else None, images.shape[1])
    return LoaderData(source, tuple(images.shape[2:]), torch.device(device), labels)


class LoaderData(Data):
    """Batches read from the data sets of `source`, which augment and normalise by themselves."""

    def __init__(self, source: Source, image_size: tuple[int, int], device: torch.device, labels: torch.Tensor | None):
        super().__init__(source, augment=(), image_size=image_size, mean=torch.zeros(source.channels),
                         deviation=torch.ones(source.channels), device=device)
        self._source, self._labels = source, labels

    def _train(self, batches, seed, epoch, start, mine):
        parts = [rows[mine] for rows in batches[start:]]
        loaded = self._load(self._source.train, parts, ("row", seed, epoch))
        return (Batch(*batch, part, len(rows))
                for batch, part, rows in zip(loaded, parts, batches[start:], strict=True))

    def test_batches(self, batch_size):
        return self._fixed(self._source.test, self._test_rows(batch_size))

    def _still(self, batches):
        return self._fixed(self._source.train, batches)

    def _fixed(self, reader: "_Reader", batches):
        """Return batches whose random transforms, where there are any, are always the same."""
        return (Batch(*batch, rows, len(rows)) for batch, rows in zip(self._load(reader, batches, ("row",)), batches,
                                                                      strict=True))

    @property
    def train_labels(self):
        if self._labels is None:
            self._labels = _labels(self._source.train)
        return self._labels

    def _load(self, reader: "_Reader", batches, seed: tuple):
        """Yield (images, labels) on the device of each of `batches`, rows of the reader's data set."""
        loader = DataLoader(_Seeded(reader, seed), batch_size=None, sampler=[rows.tolist() for rows in batches],
                            num_workers=reader.workers, worker_init_fn=reader.init,
                            pin_memory=self.device.type == "cuda", generator=torch.Generator())
        return ((send(images, self.device), send(labels, self.device)) for images, labels in loader)


class _Reader:
    """A map-style data set, and how a DataLoader over it makes batches."""

    def __init__(self, part: str, images: Dataset, collate, workers: int, init):
        self.part, self.images, self.collate, self.workers, self.init = part, images, collate, workers, init
        self.classes = None  # how many, once it is known

    @classmethod
    def of(cls, part: str, given) -> "_Reader":
        loader = given if isinstance(given, DataLoader) else None
        images = given.dataset if loader is not None else given
        if isinstance(images, IterableDataset) or not (hasattr(images, "__getitem__") and hasattr(images, "__len__")):
            raise TypeError(f"data_of: {part} must be a map-style data set, with __getitem__ and __len__, or a "
                            f"DataLoader over one, got {type(images).__name__}")
        if not len(images):
            raise ValueError(f"data_of: {part} must hold images, got none")
        if loader is None:
            return cls(part, images, default_collate, 0, None)
        if loader.batch_size is None and loader.batch_sampler is None:
            raise ValueError(f"data_of: {part} must be a DataLoader with a batch_size, because its collate_fn then "
                             "makes a batch, got batch_size=None")
        return cls(part, images, loader.collate_fn, loader.num_workers, loader.worker_init_fn)

    def __len__(self):
        return len(self.images)

    def batch(self, rows: list[int], seed: tuple = ("row",)) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and labels of `rows`, each read with random numbers of its own."""
        items = []
        with _random_numbers_kept():
            for row in rows:
                _seed(seeded(*seed, row).initial_seed())
                items.append(self.images[row])
            batch = self.collate(items)
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"data_of: {self.part} must give (image, label), got {type(batch).__name__} of a batch")
        images, labels = batch
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point():
            shape = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images)
            raise TypeError(f"data_of: {self.part} must give images as float tensors (C, H, W), got {shape} of a batch")
        return images.float(), self.check_labels(_tensor(labels), len(rows))

    def check_labels(self, labels: torch.Tensor | None, images: int | None = None) -> torch.Tensor:
        """Return `labels` as int64. Raises TypeError, ValueError unless they are (images,) integers, from 0 on."""
        if labels is None or labels.is_floating_point() or labels.dim() != 1 or len(labels) != (images or len(labels)):
            got = "others" if labels is None else f"{labels.dtype} {tuple(labels.shape)}"
            raise TypeError(f"data_of: {self.part} must give an integer label for each image, got {got} of a batch")
        below = math.inf if self.classes is None else self.classes
        wrong = labels[(labels < 0) | (labels >= below)]
        if len(wrong):
            raise ValueError(f"data_of: labels of {self.part} must be at least 0 and below {below}, got {wrong[0]}")
        return labels.long()


class _Seeded(Dataset):
    """Lists of rows -> batches of a reader, whose random numbers come from `seed` and the row."""

    def __init__(self, reader: _Reader, seed: tuple):
        self.reader, self.seed = reader, seed

    def __getitem__(self, rows: list[int]):
        return self.reader.batch(rows, self.seed)


def _labels(reader: _Reader) -> torch.Tensor:
    """Return the labels of all images, from what PyTorch's data sets call them, or by reading every image."""
    known = _known_labels(reader)
    if known is not None:
        return reader.check_labels(known)
    return torch.cat([reader.batch([row])[1] for row in range(len(reader))])


def _known_labels(reader: _Reader) -> torch.Tensor | None:
    """Return the labels of all images where the data set holds them as it gives them; the first and the last image tell
    whether a target_transform changes them."""
    images = reader.images
    known = images.tensors[1] if isinstance(images, TensorDataset) else getattr(images, "targets", None)
    known = None if known is None else _tensor(known)
    if known is None or known.dim() != 1 or len(known) != len(reader):
        return None
    ends = [0, len(reader) - 1]
    return known if torch.equal(reader.batch(ends)[1], known[ends].long()) else None


def _tensor(labels) -> torch.Tensor | None:
    """Return `labels` as a tensor; None where they are no numbers."""
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)  # torch.manual_seed would seed devices too


@contextlib.contextmanager
def _random_numbers_kept():
    """Leave the states of Python's, NumPy's and torch's random numbers as they were before the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
