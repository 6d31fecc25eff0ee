"""sample_grad_norm_batch_norm: squared norms of the per-sample gradients of a batch normalization in eval mode."""

import math

from .. import _checks as check
from .._library import define
from .._sample_checks import check_normalized

NAME = "sample_grad_norm_batch_norm"


def _shape(normalized, grad_outputs, weight, bias):
    return grad_outputs.new_empty(grad_outputs.shape[0], dtype=check.arithmetic_dtype(grad_outputs))


_forward = define(NAME, "sample_grad_norm_batch_norm_forward",
                  "(Tensor normalized, Tensor grad_outputs, bool weight, bool bias) -> Tensor", _shape)


def sample_grad_norm_batch_norm(normalized, grad_outputs, *, weight=True, bias=True):
    """Squared norm of every sample's gradient of a BatchNorm's weight and bias, its statistics constant (eval mode).

    norm_n = sum over channels of (sum over positions of g x_hat)^2 + (sum over positions of g)^2;
    y = weight * x_hat + bias
    In training mode a sample's loss depends on all others through the statistics, and a sample has no gradient of its
    own. GroupNorm and InstanceNorm, which mix no samples, are the same sum.

    Args:
        normalized: (N, C, ...), float32, bfloat16, float16 (float64 on CPU) - x_hat = (input - running_mean) /
            sqrt(running_var + eps).
        grad_outputs: normalized's shape, any of its dtypes - the loss's gradient in the result, the loss summed over
            samples.
        weight, bias: whether the layer has them; both False gives zeros.

    Returns:
        norms: (N,), float32 (float64 for float64 gradients), >= 0, summed in float64 in a fixed order. NaN and
        infinities stay.

    Gradient: none.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: a shape or device.

    Equivalent to:
        (g * x_hat).flatten(2).sum(2).square().sum(1) + g.flatten(2).sum(2).square().sum(1)

    Reference: Ioffe and Szegedy, 2015, arXiv 1502.03167; Goodfellow, 2015, arXiv 1510.01799, for norms by sample.
    """
    check_normalized(NAME, normalized, grad_outputs, weight, bias)
    if normalized.dim() < 2:
        raise ValueError(f"{NAME}: normalized must be (N, C, ...), got shape {tuple(normalized.shape)}")
    view = (*normalized.shape[:2], math.prod(normalized.shape[2:]))
    return _forward(normalized.detach().reshape(view), grad_outputs.detach().reshape(view), weight, bias)
