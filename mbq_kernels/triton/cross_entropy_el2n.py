"""cross_entropy_el2n in Triton."""

from ._logit_rows import backward, forward


def cross_entropy_el2n_forward(logits, targets, ignore_index, label_smoothing):
    return forward("cross_entropy_el2n", logits, targets, ignore_index, label_smoothing, with_loss=True)


def cross_entropy_el2n_backward(grad, logits, targets, rows, ignore_index, label_smoothing):
    return backward("cross_entropy_el2n", grad, logits, targets, rows, ignore_index, label_smoothing)
