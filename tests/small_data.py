"""A data set small enough to train on in a test."""

import torch

from mbq_lab import Observer
from mbq_lab.data.memory import MemoryData
from mbq_lab.data.splits import ArraySplit, Source


def halves(train=60, test=20, *, size=8, augment=()):
    """Two classes of 1 x size x size images that a bright left or right half tells apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(train + test) % 2
    images = torch.randn(train + test, 1, size, size, generator=generator)
    images[labels == 0, :, :, :size // 2] += 2
    images[labels == 1, :, :, size // 2:] += 2
    images = (images * 30 + 100).round().clamp(0, 255).to(torch.uint8)
    parts = [ArraySplit(images[part], labels[part], "halves") for part in (slice(train), slice(train, None))]
    source = Source("halves", *parts, classes=2, class_names=None, channels=1)
    return MemoryData(source, augment=augment, image_size=(size, size), resize=False, device=torch.device("cpu"))


class Told(Observer):
    """An observer whose methods are the functions it is made with."""

    def __init__(self, **methods):
        vars(self).update(methods)
