"""Data sets by name, held in memory."""

from dataclasses import dataclass, replace

import torch

from ._names import look_up


@dataclass(frozen=True)
class Data:
    """A classification data set in memory.

    images: (N, C, H, W) float32, normalised to zero mean and unit deviation over the training images;
    labels: (N,) int64 in [0, classes).
    """

    name: str
    classes: int
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    @property
    def in_channels(self) -> int:
        return self.train_images.shape[1]

    def to(self, device) -> "Data":
        tensors = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def load_data(name: str) -> Data:
    """Load a data set by name: `digits`, the 1797 8x8 images inside scikit-learn, a quarter of them for testing.

    The split is stratified and always the same. Raises ValueError for an unknown name, with the nearest one there is.
    """
    return look_up("load_data", _LOADERS, name)()


def batches(images, labels, batch_size: int, generator: torch.Generator):
    """All (images, labels) once, in an order drawn from `generator` (on CPU), batch_size at a time."""
    order = torch.randperm(len(images), generator=generator).to(images.device)
    for rows in order.split(batch_size):
        yield images[rows], labels[rows]


def _digits() -> Data:
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    train_images, test_images = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    mean, deviation = train_images.mean(), train_images.std()
    return Data("digits", 10, (train_images - mean) / deviation, train_labels,
                (test_images - mean) / deviation, test_labels)


_LOADERS = {"digits": _digits}
