"""Accuracy on the test images."""

import torch
from torch import nn

from mbq_train.quantize.bits import in_mode, switch_bits_of

from ..data import Data


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, bits: int, *, batch_size: int = 512) -> float:
    """Return the share of the test images that `model` classifies correctly at `bits` bits, in [0, 1].

    Afterwards mode and bit-width of the model are as before. Raises ValueError for a bit-width that is not trained.
    """
    with in_mode(model, training=False):
        switch_bits_of(model, bits)
        correct = sum((model(batch.images).argmax(dim=1) == batch.labels).sum() for batch in
                      data.test_batches(batch_size))
    return correct.item() / data.test_size
