"""The 1797 8 x 8 digits inside scikit-learn."""

import torch

from mbq_train._packages import required

from .splits import ArraySplit, Source


def read_digits() -> Source:
    """Return values 0 to 16 in one channel; a stratified quarter, always the same, for testing."""
    required("load_data", "sklearn")
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    train_images, test_images = (torch.tensor(part, dtype=torch.uint8).reshape(-1, 1, 8, 8) for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return Source("digits", ArraySplit(train_images, train_labels, "digits"),
                  ArraySplit(test_images, test_labels, "digits"), 10, tuple("0123456789"), channels=1)
