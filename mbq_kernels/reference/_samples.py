"""Per-sample gradient norms from per-sample gradients."""

import torch

from .._checks import arithmetic_dtype


def check_gram(op, gram, weight_factor):
    """Which way was asked for is nothing to the result, but Gram products know no factor."""
    if gram and weight_factor is not None:
        raise RuntimeError(f"{op}: Gram products must have no weight_factor")


def squared_norms(activations, grad_outputs, weight_factor, bias, weight_gradient):
    """(N,) |factor * weight_gradient(a, g)|^2 + |bias gradient|^2; a (T, ...) or (C, ...) and g likewise, a sample's"""
    dtype = arithmetic_dtype(activations)
    norms = torch.zeros(activations.shape[0], dtype=dtype, device=activations.device)
    with torch.autocast(activations.device.type, enabled=False):
        for n, (a, g) in enumerate(zip(activations.to(dtype), grad_outputs.to(dtype), strict=True)):
            grad = weight_gradient(a, g)
            grad = grad if weight_factor is None else grad * weight_factor
            norms[n] = grad.double().square().sum()
            if bias:
                rows = g if g.dim() == 2 else g.flatten(1).T  # positions, outputs
                norms[n] += rows.double().sum(0).square().sum()
    return norms
