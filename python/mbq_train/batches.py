"""What one step trains on, and random numbers that depend on nothing but what they are for."""

import hashlib
from typing import NamedTuple

import torch


class Batch(NamedTuple):
    """Images of one step, on the device of the training.

    images: (N, C, H, W) float32, normalised; labels: (N,) int64; rows: (N,) int64 on the CPU - their index in the
    training (or test) set; total: images in the batch over all ranks.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    total: int


def seeded(purpose: str, *numbers: int) -> torch.Generator:
    """Return a generator on the CPU seeded by a hash of all of these, so that near numbers have nothing in common."""
    digest = hashlib.blake2b(repr((purpose, *map(int, numbers))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
