"""Norms of the gradients of y = weight * x_hat + bias: what the references of the normalization layers share."""

from ._channels import widen

TILE = 1 << 20  # elements that are widened at once


def squared_norms(normalized, grad_outputs, dim: int, weight: bool, bias: bool):
    """Per sample: the sum over channels of (sum over `dim` of grad x_hat)^2 and of (sum over `dim` of grad)^2"""
    samples = len(grad_outputs)
    norms = grad_outputs.new_zeros(samples, dtype=widen(grad_outputs).dtype)
    each = max(1, TILE // max(1, grad_outputs[:1].numel()))
    for first in range(0, samples, each):
        grad, part = grad_outputs[first:first + each].double(), 0
        if weight:
            part = (grad * normalized[first:first + each].double()).sum(dim).square().sum(1)
        if bias:
            part = part + grad.sum(dim).square().sum(1)
        norms[first:first + each] = part
    return norms
