"""Data in memory: uint8 images on the device of the training, normalised and augmented there by the batch."""

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from mbq_train.batches import Batch, seeded

from .augment import augment_images, draw
from .batches import Data, send
from .errors import DataError
from .images import decode_image, fit, pixels
from .splits import ArraySplit, Source, Split

READ_AT_ONCE, DECODE_AT_ONCE = 4096, 64  # encoded images in memory; images that a thread decodes in one go


class MemoryData(Data):
    """All images decoded and of one size; normalised by their own mean and deviation."""

    def __init__(self, source: Source, *, augment: tuple[str, ...], image_size: tuple[int, int], resize: bool,
                 device: torch.device):
        """resize: make the images fit image_size; otherwise one of another size is a DataError."""
        train, test = (decode_all(split, image_size, resize) for split in (source.train, source.test))
        mean, deviation = channel_statistics(train)
        super().__init__(source, augment=augment, image_size=image_size, mean=mean, deviation=deviation, device=device)
        self._train_images, self._test_images = train.to(device), test.to(device)
        self._train_labels, self._test_labels = source.train.labels.to(device), source.test.labels.to(device)
        self._fill = self._mean.round().to(torch.uint8)

    def _train(self, batches, seed, epoch, start, mine):
        for number in range(start, len(batches)):
            parameters = draw(len(batches[number]), self.image_size, seeded("batch", seed, epoch, number))
            rows = batches[number][mine]
            sent = send(torch.cat([rows[:, None], parameters[mine]], dim=1), self.device)
            images = self._train_images.index_select(0, sent[:, 0])
            images = augment_images(images, sent[:, 1:], self.augment, self._fill)
            yield Batch(self._normalise(images), self._train_labels[sent[:, 0]], rows, len(batches[number]))

    def _still(self, batches):
        return (Batch(self._normalise(self._train_images[rows[0]:rows[-1] + 1]),
                      self._train_labels[rows[0]:rows[-1] + 1], rows, len(rows)) for rows in batches)

    @property
    def train_labels(self):
        return self._train_labels.cpu()

    def test_batches(self, batch_size):
        return (Batch(self._normalise(self._test_images[rows[0]:rows[-1] + 1]),
                      self._test_labels[rows[0]:rows[-1] + 1], rows, len(rows)) for rows in self._test_rows(batch_size))


def decode_all(split: Split, size: tuple[int, int], resize: bool) -> torch.Tensor:
    """Return (N, C, H, W) uint8, decoded by a thread per processor; Pillow works outside Python's lock."""
    if isinstance(split, ArraySplit) and split.images.shape[2:] == size:
        return split.images
    first = pixels(decode_image(split.read(0), split.where(0)))
    images = torch.empty(len(split), first.shape[0], *size, dtype=torch.uint8)

    def decode(begin: int, raws: list) -> None:
        for row, raw in enumerate(raws, start=begin):
            image = decode_image(raw, split.where(row))
            if not resize and image.size != size[::-1]:
                raise DataError(f"load_data: images must all be {size[0]} x {size[1]} like the first, or image_size be "
                                f"given, got {image.height} x {image.width} in {split.where(row)}")
            images[row] = pixels(fit(image, size))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin in range(0, len(split), READ_AT_ONCE):
            raws = [split.read(row) for row in range(begin, min(begin + READ_AT_ONCE, len(split)))]
            parts = range(0, len(raws), DECODE_AT_ONCE)
            list(pool.map(decode, [begin + part for part in parts],
                          [raws[part:part + DECODE_AT_ONCE] for part in parts]))  # a list, to meet the errors
    return images


def channel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation (C,) float64 of uint8 images, exact from counts of the values; a constant channel has
    1."""
    counts = torch.stack([images[:, c].reshape(-1).bincount(minlength=256) for c in range(images.shape[1])]).double()
    values = torch.arange(256, dtype=torch.float64)
    number = counts.sum(1)
    mean = counts @ values / number
    variance = (counts * (values - mean[:, None]).square()).sum(1) / (number - 1).clamp(min=1)
    return mean, torch.where(variance > 0, variance.sqrt(), 1.0)
