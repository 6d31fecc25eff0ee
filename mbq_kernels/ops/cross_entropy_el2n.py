"""cross_entropy_el2n: the loss of every row and its error norm from one read of the logits."""

import torch

from .. import _checks as check
from .._library import define
from .._sample_checks import check_logits
from ._function import BackwardFunction, apply

NAME = "cross_entropy_el2n"


def _forward_shape(logits, targets, ignore_index, label_smoothing):
    dtype = check.arithmetic_dtype(logits)
    loss, el2n = (logits.new_empty(logits.shape[0], dtype=dtype) for _ in range(2))
    return loss, el2n, logits.new_empty((logits.shape[0], 2), dtype=dtype)


def _backward_shape(grad, logits, targets, rows, ignore_index, label_smoothing):
    return logits.new_empty(logits.shape)


_forward = define(NAME, "cross_entropy_el2n_forward",
                  "(Tensor logits, Tensor targets, int ignore_index, float label_smoothing) "
                  "-> (Tensor, Tensor, Tensor)", _forward_shape)
_backward = define(NAME, "cross_entropy_el2n_backward",
                   "(Tensor grad, Tensor logits, Tensor targets, Tensor rows, int ignore_index, "
                   "float label_smoothing) -> Tensor", _backward_shape)


class CrossEntropyEl2nBackward(BackwardFunction):
    @staticmethod
    def forward(grad, logits, targets, rows, options):
        return _backward(grad, logits, targets, rows, *options)


class CrossEntropyEl2n(torch.autograd.Function):
    """Options are (ignore_index, label_smoothing)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, targets, options):
        return _forward(logits, targets, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, targets, ctx.options = inputs
        _, el2n, rows = output
        ctx.mark_non_differentiable(el2n, rows)
        ctx.save_for_backward(logits, targets, rows)

    @staticmethod
    def backward(ctx, grad, _, __):
        return apply(CrossEntropyEl2nBackward, grad, *ctx.saved_tensors, ctx.options), None, None


def cross_entropy_el2n(logits, targets, *, ignore_index=-100, label_smoothing=0.0):
    """Return the cross-entropy of every row and the norm of its gradient in the logits (EL2N), from one read of them.

    loss = -sum_j q_j log p_j;  el2n = ||p - q||_2
    p = softmax(logits), q = (1 - e) onehot + e / C, e = label_smoothing

    Without smoothing el2n is Paul et al.'s score, as the op el2n gives it; with smoothing it is the norm of the
    gradient of the smoothed loss. Without smoothing neither cancels for rows that are sure of their target: loss and
    el2n keep six digits down to the smallest float32 numbers.

    Args:
        logits: (..., C), float32, bfloat16, float16 (float64 on CPU), C >= 1.
        targets: (...), int64 or int32 - the class of every row, in [0, C). Others raise on the CPU and give NaN on CUDA
            (no host synchronisation).
        ignore_index: rows with this target get loss 0, el2n 0 and gradient 0.
        label_smoothing: 0..1 - the share of the target that is spread over all classes.

    Returns:
        (loss, el2n): (...) each, float32 (float64 for float64 logits); not reduced.

    Gradient: logits get (p - q) * grad of loss, in their dtype, rounded once; el2n has none. Saved are the logits, the
    targets and two numbers a row.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: a shape, device or label_smoothing. RuntimeError: on the CPU, a
        target is out of range, with its row; double backward.

    Equivalent to (loss):
        torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)

    Reference: Paul et al., "Deep Learning on a Data Diet", 2021, arXiv 2107.07075, definition 2.2; Szegedy et al.,
    2016, arXiv 1512.00567, section 7, for the smoothing.
    """
    check_logits(NAME, logits, targets, ignore_index)
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, (int, float)):
        raise TypeError(f"{NAME}: label_smoothing must be a number, got {label_smoothing!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{NAME}: label_smoothing must be between 0 and 1, got {label_smoothing}")
    rows = logits.reshape(targets.numel(), logits.shape[-1])
    loss, norms, _ = apply(CrossEntropyEl2n, rows, targets.reshape(-1), (ignore_index, float(label_smoothing)))
    return loss.reshape(targets.shape), norms.reshape(targets.shape)
