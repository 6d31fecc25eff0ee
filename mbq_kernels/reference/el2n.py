"""el2n in plain PyTorch."""

import torch

from ._logits import row_results, targets_of


@torch.no_grad()
def el2n_forward(logits, targets, ignore_index):
    target, counts, absent = targets_of("el2n", logits, targets, ignore_index)
    _, el2n, _, _ = row_results(logits, target)
    return torch.where(counts, torch.where(absent, torch.nan, el2n), 0)
