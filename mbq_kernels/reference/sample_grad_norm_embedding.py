"""sample_grad_norm_embedding in plain PyTorch."""

import torch

from ._channels import widen

TILE = 1 << 20  # elements of the sums that are kept at once


def slots(indices):
    """A number for every position, the same one for equal indices of a sample, from 0 up"""
    ordered, order = indices.sort(dim=1, stable=True)
    new = torch.zeros_like(order)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(order).scatter_(1, order, new.cumsum(1))


@torch.no_grad()
def sample_grad_norm_embedding_forward(indices, grad_outputs, padding_idx):
    samples, positions, width = grad_outputs.shape
    norms = grad_outputs.new_zeros(samples, dtype=widen(grad_outputs).dtype)
    if grad_outputs.numel() == 0:
        return norms
    each = max(1, TILE // (positions * width))
    for first in range(0, samples, each):
        index, grad = indices[first:first + each], grad_outputs[first:first + each].double()
        if padding_idx is not None:
            grad = torch.where((index == padding_idx).unsqueeze(-1), 0, grad)
        rows = slots(index) + torch.arange(len(index), device=index.device).unsqueeze(1) * positions
        sums = grad.new_zeros(rows.numel(), width).index_put_((rows.flatten(),), grad.flatten(0, 1), accumulate=True)
        norms[first:first + each] = sums.view(len(index), -1).square().sum(1)
    return norms
