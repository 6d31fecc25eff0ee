"""Self-distillation: soft targets from the highest bit-width's own predictions an epoch ago."""

import torch
import torch.distributed as dist

from .. import distributed
from ..batches import Batch


class SoftTargets:
    """Targets (1 - a) onehot + a P, P the highest bit-width's softmax when it last saw the image.

    a = largest (epoch + 1) / epochs; 0 for images not seen yet (Huang et al., 2025, arXiv 2502.01199: largest = 0.7,
    as in its public code). Holds one float16 row of `classes` per training image.

    Args:
        images, classes: size of the training set and of the logits.
        largest: share of the soft part at the end, in [0, 1].
        epochs: of the whole training.
        device: where the table lies.
    """

    def __init__(self, images: int, classes: int, *, largest: float, epochs: int, device):
        self.largest, self.epochs = largest, epochs
        self.share = torch.zeros((), device=device)  # a tensor: a captured graph reads its value at replay
        self.table = torch.zeros(images, classes, dtype=torch.float16, device=device)
        self.touched = torch.zeros(images, 1, dtype=torch.bool, device=device)  # by this process, since the last merge

    def begin_epoch(self, epoch: int) -> None:
        """Set a for epoch `epoch`, from 0."""
        self.share.fill_(self.largest * (epoch + 1) / self.epochs)

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return (N, classes) float32 probabilities for a batch of this epoch."""
        soft = self.table[batch.rows.to(self.table.device)].float()
        share = self.share * (soft.sum(dim=1, keepdim=True) > 0)
        hard = torch.nn.functional.one_hot(batch.labels, soft.shape[1])
        return (1 - share) * hard + share * soft

    @torch.no_grad()
    def remember(self, batch: Batch, logits: torch.Tensor) -> None:
        """Keep the softmax of the highest bit-width's logits for the next epoch."""
        rows = batch.rows.to(self.table.device)
        self.table[rows] = logits.float().softmax(dim=1).half()
        self.touched[rows] = True

    def merge(self) -> None:
        """Collect what every process has seen; all of them call it, at the end of an epoch and before a checkpoint."""
        if distributed.world_size() > 1:
            untouched = distributed.minimum(1 - self.touched.int()).bool()
            mine = torch.where(self.touched, self.table, 0)
            dist.all_reduce(mine)
            self.table.copy_(torch.where(untouched, self.table, mine))
        self.touched.zero_()
