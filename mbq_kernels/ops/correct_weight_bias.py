"""correct_weight_bias: give a quantized weight the mean and deviation of the float weight, per channel."""

import torch

from .. import _checks as check
from .._library import define
from ._function import BackwardFunction, apply

NAME = "correct_weight_bias"
ROWS = 6  # factor, centre, shift, sd(w_quant), mean(w_ref), sd(w_ref)


def _forward_shape(w_quant, w_ref, axis, eps):
    rows = w_quant.new_empty((ROWS, 1 if axis is None else w_quant.shape[axis]), dtype=check.arithmetic_dtype(w_quant))
    return torch.empty_like(w_quant), rows


_forward = define(NAME, "correct_weight_bias_forward",
                  "(Tensor w_quant, Tensor w_ref, int? axis, float eps) -> (Tensor, Tensor)", _forward_shape)
def _like(row, x, axis):
    """One number per channel, in a shape that broadcasts against x."""
    return row.reshape([-1 if d == axis else 1 for d in range(x.dim())])


class CorrectWeightBiasBackward(BackwardFunction):
    """Through the statistics too: d y / d w_quant = factor (I - 1/n - z z^T / (n - 1)), z the normalised w_quant."""

    @staticmethod
    def forward(grad, w_quant, w_ref, rows, options):
        axis, eps = options
        factor, centre, _, quant_sd, ref_mean, ref_sd = rows.double()
        others = [d for d in range(grad.dim()) if d != axis]
        count, g = max(w_quant.numel() // max(factor.numel(), 1), 1), grad.double()
        quant, ref = w_quant.double() - _like(centre, g, axis), w_ref.double() - _like(ref_mean, g, axis)
        total, along = (t.sum(others).reshape(-1) if others else t for t in (g, g * quant))
        along = along / max(count - 1, 1)
        along_quant = torch.where(factor == 0, 0, factor * along / (quant_sd * (quant_sd + eps)))
        along_ref = torch.where((factor == 0) | (ref_sd == 0), 0, along / (ref_sd * (quant_sd + eps)))
        spread, factor_ = _like(total / count, g, axis), _like(factor, g, axis)
        to_quant = factor_ * (g - spread) - _like(along_quant, g, axis) * quant
        to_ref = spread + _like(along_ref, g, axis) * ref
        return to_quant.to(w_quant.dtype), to_ref.to(w_ref.dtype)


class CorrectWeightBias(torch.autograd.Function):
    """Options are (axis, eps)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w_quant, w_ref, options):
        return _forward(w_quant, w_ref, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        w_quant, w_ref, ctx.options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(w_quant, w_ref, output[1])

    @staticmethod
    def backward(ctx, grad, _):
        return *apply(CorrectWeightBiasBackward, grad, *ctx.saved_tensors, ctx.options), None


class CorrectWeightBiasDetachedBackward(BackwardFunction):
    @staticmethod
    def forward(grad, factor, axis):
        return (grad * _like(factor, grad, axis)).to(grad.dtype)


class CorrectWeightBiasDetached(CorrectWeightBias):
    """The statistics are constants: only w_quant has a gradient, and only the factors are saved."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.axis, _ = inputs[2]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad, _):
        (rows,) = ctx.saved_tensors
        return apply(CorrectWeightBiasDetachedBackward, grad, rows[0], ctx.axis), None, None


def correct_weight_bias(w_quant, w_ref, *, axis=0, eps=1e-8, detach_stats=True):
    """Give every channel of a quantized weight the mean and the deviation of the same channel of `w_ref`.

    y = sd(w_ref) / (sd(w_quant) + eps) * (w_quant - mean(w_quant)) + mean(w_ref), per channel, unbiased deviations
    A channel of w_quant that is constant - sd(w_quant) <= 1e-6 |mean(w_quant)|, which is rounding noise - gets factor
    0 and becomes mean(w_ref). So does a channel of one element.

    Args:
        w_quant: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - the quantized weight.
        w_ref: w_quant's shape, floating point (float64 exactly when w_quant is) - the weight whose statistics are kept.
        axis: the axis that has the channels, negative counts from the end; None: all of the weight is one channel.
        eps: > 0 or 0 - added to sd(w_quant).
        detach_stats: take the statistics as constants in the backward.

    Returns:
        y: w_quant's shape, dtype and the strides of torch.empty_like(w_quant). Statistics are summed in float64 in a
        fixed order. NaN or an infinity makes its channel NaN.

    Gradient: detach_stats: w_quant gets factor * grad, w_ref nothing; factors are all that is saved. Otherwise both get
    theirs, through the means and deviations too (a constant channel: w_ref gets the mean of grad).

    Raises:
        TypeError: a dtype or type is wrong. ValueError: axis, eps, shape or device. RuntimeError: double backward.

    Equivalent to:
        factor = w_ref.std(dims, keepdim=True) / (w_quant.std(dims, keepdim=True) + eps)
        factor * (w_quant - w_quant.mean(dims, keepdim=True)) + w_ref.mean(dims, keepdim=True)

    Reference: Kim et al., "EMQNet", 2025, arXiv 2510.20673, weight bias correction; Banner et al., 2019, arXiv
    1810.05723, eq. 12-13. fake_quantize_corrected quantizes and corrects in two reads.
    """
    check.check_x(NAME, w_quant, "w_quant")
    check.check_x(NAME, w_ref, "w_ref")
    check.check_pair(NAME, ("w_quant", "w_ref"), w_quant, w_ref)
    check.check_same_arithmetic(NAME, ("w_quant", "w_ref"), w_quant, w_ref)
    check.check_flag(NAME, "detach_stats", detach_stats)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{NAME}: eps must be a number, got {eps!r}")
    if not eps >= 0:
        raise ValueError(f"{NAME}: eps must be at least 0, got {eps}")
    axis = check.check_axis(NAME, w_quant, axis, "w_quant")
    function = CorrectWeightBiasDetached if detach_stats else CorrectWeightBias
    return apply(function, w_quant, w_ref, (axis, float(eps)))[0]
