"""sample_grad_norm_layer_norm in plain PyTorch."""

import torch

from ._affine_norms import squared_norms


@torch.no_grad()
def sample_grad_norm_layer_norm_forward(normalized, grad_outputs, weight, bias):
    return squared_norms(normalized, grad_outputs, 1, weight, bias)
