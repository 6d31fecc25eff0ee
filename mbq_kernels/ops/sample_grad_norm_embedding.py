"""sample_grad_norm_embedding: squared norms of the per-sample gradients of an embedding."""

import math

import torch

from .. import _checks as check
from .._library import define

NAME = "sample_grad_norm_embedding"


def _shape(indices, grad_outputs, padding_idx):
    return grad_outputs.new_empty(grad_outputs.shape[0], dtype=check.arithmetic_dtype(grad_outputs))


_forward = define(NAME, "sample_grad_norm_embedding_forward",
                  "(Tensor indices, Tensor grad_outputs, int? padding_idx) -> Tensor", _shape)


def sample_grad_norm_embedding(indices, grad_outputs, *, padding_idx=None):
    """Squared norm of every sample's gradient of an embedding's weight, without a gradient per sample in memory.

    norm_n = sum over distinct i in indices[n] of || sum over positions t with indices[n, t] = i of g[n, t] ||^2
    Positions of one sample that look up the same row add up before they are squared.

    Args:
        indices: (N, ...), int64 or int32 - what was looked up, N samples.
        grad_outputs: (N, ..., D), float32, bfloat16, float16 (float64 on CPU) - the loss's gradient in the result, the
            loss summed over samples (multiply by N what comes from a mean).
        padding_idx: this index has no gradient, as in nn.Embedding; None: there is no such index. (max_norm and
            scale_grad_by_freq of nn.Embedding are not known here.)

    Returns:
        norms: (N,), float32 (float64 for float64 gradients), >= 0, summed in float64 in a fixed order. NaN and
        infinities stay.

    Gradient: none.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: a shape or device.

    Equivalent to:
        [torch.autograd.grad(loss of sample n, embedding.weight)[0].square().sum() for n in range(N)]

    Reference: Lee and Kifer, "Scaling up Differentially Private Deep Learning with Fast Per-Example Gradient Clipping",
    2021, arXiv 2009.03106; Li et al., 2022, arXiv 2110.05679, section 4, whose Gram matrix over positions this avoids.
    """
    check.check_x(NAME, grad_outputs, "grad_outputs")
    if not isinstance(indices, torch.Tensor):
        raise TypeError(f"{NAME}: indices must be a tensor, got {type(indices).__name__}")
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{NAME}: indices must be int64 or int32, got {indices.dtype}")
    if padding_idx is not None and (isinstance(padding_idx, bool) or not isinstance(padding_idx, int)):
        raise TypeError(f"{NAME}: padding_idx must be an integer or None, got {padding_idx!r}")
    if indices.dim() == 0 or indices.shape != grad_outputs.shape[:-1]:
        raise ValueError(f"{NAME}: grad_outputs must be (N, ..., D) for indices (N, ...), "
                         f"got {tuple(grad_outputs.shape)} for {tuple(indices.shape)}")
    if indices.device != grad_outputs.device:
        raise ValueError(f"{NAME}: indices must be on grad_outputs' device {grad_outputs.device}, got {indices.device}")
    samples, positions = indices.shape[0], math.prod(indices.shape[1:])
    return _forward(indices.reshape(samples, positions),
                    grad_outputs.detach().reshape(samples, positions, grad_outputs.shape[-1]), padding_idx)
