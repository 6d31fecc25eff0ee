"""el2n: how far the softmax is from the target, per row, from one read of the logits."""

from .. import _checks as check
from .._library import define
from .._sample_checks import check_logits

NAME = "el2n"


def _shape(logits, targets, ignore_index):
    return logits.new_empty(logits.shape[0], dtype=check.arithmetic_dtype(logits))


_forward = define(NAME, "el2n_forward", "(Tensor logits, Tensor targets, int ignore_index) -> Tensor", _shape)


def el2n(logits, targets, *, ignore_index=-100):
    """Return the error norm of every row of logits, ||softmax - onehot||_2, a score of how hard a sample is.

    el2n = sqrt(sum_{j != t} p_j^2 + (sum_{j != t} p_j)^2), p = softmax(logits), t = target
    It is the norm of the cross-entropy's gradient in the logits. In this form nothing cancels: rows that are sure of
    their target keep six digits (1 + sum p^2 - 2 p_t would give 0 or NaN for them).

    Args:
        logits: (..., C), float32, bfloat16, float16 (float64 on CPU), C >= 1. -inf: the class has probability 0.
        targets: (...), int64 or int32 - the class of every row, in [0, C). Others raise on the CPU and give NaN on CUDA
            (no host synchronisation).
        ignore_index: rows with this target get 0.

    Returns:
        norms: (...), float32 (float64 for float64 logits), in [0, sqrt(2)]. NaN or +inf in a row gives NaN.

    Gradient: none; cross_entropy_el2n gives the differentiable loss from the same read.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: a shape or device. RuntimeError, on the CPU: a target is out of
        range, with its row.

    Equivalent to:
        (logits.softmax(-1) - torch.nn.functional.one_hot(targets, C)).norm(dim=-1)

    Reference: Paul et al., "Deep Learning on a Data Diet", 2021, arXiv 2107.07075, definition 2.2.
    """
    check_logits(NAME, logits, targets, ignore_index)
    rows = logits.detach().reshape(targets.numel(), logits.shape[-1])
    return _forward(rows, targets.reshape(-1), ignore_index).reshape(targets.shape)
