"""sample_grad_norm_layer_norm: squared norms of the per-sample gradients of a layer normalization."""

import math

from .. import _checks as check
from .._library import define
from .._sample_checks import check_normalized

NAME = "sample_grad_norm_layer_norm"


def _shape(normalized, grad_outputs, weight, bias):
    return grad_outputs.new_empty(grad_outputs.shape[0], dtype=check.arithmetic_dtype(grad_outputs))


_forward = define(NAME, "sample_grad_norm_layer_norm_forward",
                  "(Tensor normalized, Tensor grad_outputs, bool weight, bool bias) -> Tensor", _shape)


def sample_grad_norm_layer_norm(normalized, grad_outputs, *, normalized_shape, weight=True, bias=True):
    """Squared norm of every sample's gradient of a LayerNorm's (or RMSNorm's) weight and bias.

    norm_n = || sum over positions of g x_hat ||^2 + || sum over positions of g ||^2, y = weight * x_hat + bias

    Args:
        normalized: (N, ..., *normalized_shape), float32, bfloat16, float16 (float64 on CPU) - x_hat, the input with
            mean 0 and variance 1: torch.nn.functional.layer_norm(input, normalized_shape, eps=eps).
        grad_outputs: normalized's shape, any of its dtypes - the loss's gradient in the result, the loss summed over
            samples.
        normalized_shape: an integer or a sequence of them, as nn.LayerNorm has it.
        weight, bias: whether the layer has them; both False gives zeros.

    Returns:
        norms: (N,), float32 (float64 for float64 gradients), >= 0, summed in float64 in a fixed order. NaN and
        infinities stay.

    Gradient: none.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: a shape or device.

    Equivalent to:
        (g * x_hat).flatten(1, -2).sum(1).square().sum(1) + g.flatten(1, -2).sum(1).square().sum(1)

    Reference: Ba et al., 2016, arXiv 1607.06450, section 3; Goodfellow, 2015, arXiv 1510.01799, for norms by sample.
    """
    check_normalized(NAME, normalized, grad_outputs, weight, bias)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    leading = normalized.dim() - len(shape)
    if not shape or leading < 1 or tuple(normalized.shape[leading:]) != shape:
        raise ValueError(f"{NAME}: normalized must be (N, ..., *normalized_shape) with normalized_shape {shape}, "
                         f"got {tuple(normalized.shape)}")
    view = (normalized.shape[0], math.prod(normalized.shape[1:leading]), math.prod(shape))
    return _forward(normalized.detach().reshape(view), grad_outputs.detach().reshape(view), weight, bias)
