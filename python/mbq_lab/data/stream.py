"""Streamed data: images decoded from files or row groups, batch by batch, by worker processes."""

import torch
from torch.utils.data import DataLoader, Dataset

from mbq_train.batches import Batch, seeded

from .augment import RESIZED_CROP, augment_images, draw, resized_crop_box
from .batches import Data, send
from .errors import DataError
from .images import crop_resized, decode_image, fit, pixels
from .splits import Source, Split

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in 0..1
ENLARGE = 256 / 224  # of images before their centre is cut out


class StreamData(Data):
    """Labels and the places of the images are in memory, the images on disk; normalised by ImageNet's constants."""

    def __init__(self, source: Source, *, augment: tuple[str, ...], image_size: tuple[int, int], workers: int,
                 device: torch.device):
        mean, deviation = (255 * torch.tensor(value, dtype=torch.float64) for value in (MEAN, DEVIATION))
        super().__init__(source, augment=augment, image_size=image_size, mean=mean, deviation=deviation, device=device)
        self._source, self._workers = source, workers

    def _arrange(self, order, generator):
        windows = self._source.train.windows(generator)
        return order if windows is None else order[windows[order].argsort(stable=True)]

    def _train(self, batches, seed, epoch, start, mine):
        images = _Augmented(self._source.train, self.image_size, self.augment, seed, epoch)
        for batch, rows in self._load(images, [rows[mine] for rows in batches[start:]]):
            yield Batch(*batch, rows, len(batches[start]))
            start += 1

    def test_batches(self, batch_size):
        images = _Centred(self._source.test, self.image_size)
        return (Batch(*batch, rows, len(rows)) for batch, rows in self._load(images, self._test_rows(batch_size)))

    def _still(self, batches):
        images = _Centred(self._source.train, self.image_size)
        return (Batch(*batch, rows, len(rows)) for batch, rows in self._load(images, batches))

    @property
    def train_labels(self):
        return self._source.train.labels

    def _load(self, images: "_Centred", batches):
        """Yield ((images, labels) on the device, rows) of each of `batches`, the rows of images."""
        loader = DataLoader(images, batch_size=None, sampler=(rows.tolist() for rows in batches),
                            num_workers=self._workers, pin_memory=self.device.type == "cuda",
                            generator=torch.Generator())  # without one it takes a number from torch's own
        for decoded, rows in zip(loader, batches, strict=True):
            if isinstance(decoded, DataError):
                raise decoded
            labels = images.split.labels[rows]
            yield (self._normalise(send(decoded, self.device)), send(labels, self.device)), rows


class _Centred(Dataset):
    """Rows -> (N, C, H, W) uint8, the centre of each image; or the DataError, whose message a worker would bury."""

    def __init__(self, split: Split, size: tuple[int, int]):
        self.split, self.size = split, size

    def __getitem__(self, rows: list[int]):
        try:
            return torch.stack([self.image(row) for row in rows])
        except DataError as error:
            return error

    def image(self, row: int) -> torch.Tensor:
        return pixels(fit(self.decoded(row), self.size, enlarge=ENLARGE))

    def decoded(self, row: int):
        return decode_image(self.split.read(row), self.split.where(row))


class _Augmented(_Centred):
    """The same, augmented; the generator of an image is its own, whichever worker it falls to."""

    def __init__(self, split, size, names: tuple[str, ...], seed: int, epoch: int):
        super().__init__(split, size)
        self.names, self.seed, self.epoch = names, seed, epoch
        self.fill = (255 * torch.tensor(MEAN)).round().to(torch.uint8).reshape(1, 3, 1, 1)

    def image(self, row):
        generator, image = seeded("row", self.seed, self.epoch, row), self.decoded(row)
        if RESIZED_CROP in self.names:
            box = resized_crop_box((image.height, image.width), generator)
            image = crop_resized(image, box, self.size)
        else:
            image = fit(image, self.size, enlarge=ENLARGE)
        return augment_images(pixels(image)[None], draw(1, self.size, generator), self.names, self.fill)[0]
