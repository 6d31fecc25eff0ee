"""sample_grad_norm_linear in plain PyTorch: one sample's gradient after the other is written out."""

import torch

from ._samples import check_gram, squared_norms


@torch.no_grad()
def sample_grad_norm_linear_forward(activations, grad_outputs, weight_factor, bias, gram):
    check_gram("sample_grad_norm_linear", gram, weight_factor)
    return squared_norms(activations, grad_outputs, weight_factor, bias, lambda a, g: g.T @ a)
