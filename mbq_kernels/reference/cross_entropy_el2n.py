"""cross_entropy_el2n in plain PyTorch."""

import torch

from ._channels import widen
from ._logits import gaps, row_results, targets_of

NAME = "cross_entropy_el2n"


@torch.no_grad()
def cross_entropy_el2n_forward(logits, targets, ignore_index, label_smoothing):
    target, counts, absent = targets_of(NAME, logits, targets, ignore_index)
    loss, el2n, top, log_sum = row_results(logits, target, label_smoothing)
    loss, el2n = (torch.where(counts, torch.where(absent, torch.nan, value), 0) for value in (loss, el2n))
    return loss, el2n, torch.stack([top, torch.where(absent, torch.nan, log_sum)], 1)


@torch.no_grad()
def cross_entropy_el2n_backward(grad, logits, targets, rows, ignore_index, label_smoothing):
    target, counts, _ = targets_of(NAME, logits, targets, ignore_index)
    grads = gaps(widen(logits), target, rows[:, 0], rows[:, 1], label_smoothing) * grad.unsqueeze(1)
    return torch.where(counts.unsqueeze(1), grads, 0).to(logits.dtype)
