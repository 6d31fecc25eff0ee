"""The arithmetic of rows of logits in PyTorch. Its twins: csrc/math/softmax_math.h and triton/softmax_math.py.

The target is kept apart from the other classes, so that nothing cancels where the softmax is sure of it: 1 - p_t is
always the sum of the other probabilities.
"""

import torch


def exponential(x):
    """e^x"""
    return torch.exp(x)


def row_result(others, total, squares, logit):
    """(loss, el2n, top, log_sum) of rows, from the target's logit and the classes but the target.

    Of those: others = their maximum, total = sum e^(x - others), squares = sum e^(2 (x - others)).
    top = the row's maximum, log_sum = log(sum over all classes of e^(x - top)); loss = log_sum + top - logit;
    el2n = sqrt(sum_{j != t} p_j^2 + (sum_{j != t} p_j)^2). A logit of +inf, the target's too, gives NaN.
    """
    distance = logit - others
    ahead = distance > 0  # the target has the highest logit
    small = torch.where(logit == torch.inf, torch.nan, exponential(-distance.abs()))
    rest = torch.where(ahead, total * small, total)
    log_sum = torch.where(ahead, torch.log1p(rest), torch.log(total + small))
    loss = torch.where(ahead, log_sum, log_sum - distance)
    norm = torch.sqrt(squares + total * total)
    el2n = torch.where(ahead, norm * small / (1 + rest), norm / (total + small))
    return loss, el2n, torch.where(ahead, logit, others), log_sum


def class_gap(x, top, log_sum, uniform: float):
    """d loss / d x of a class that is not the target, p - uniform; uniform = smoothing / classes"""
    return exponential((x - top) - log_sum) - uniform


def target_gap(x, top, log_sum, smoothing: float, uniform: float):
    """d loss / d x of the target: (p - 1) + (smoothing - uniform)"""
    return torch.expm1((x - top) - log_sum) + (smoothing - uniform)


def smoothed_loss(loss, top, log_sum, mean, smoothing: float):
    """The loss of the smoothed target, from that of the plain one and the mean of all logits"""
    return (1 - smoothing) * loss + smoothing * (log_sum + (top - mean))
