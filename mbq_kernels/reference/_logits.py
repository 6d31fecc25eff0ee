"""Rows of logits and their targets: what the references of el2n and cross_entropy_el2n share."""

import torch

from . import softmax_math as sm
from ._channels import widen


def targets_of(op: str, logits, targets, ignore_index: int):
    """(target of each row, one that exists in its place where there is none; which rows count; which have none)"""
    counts = targets != ignore_index
    absent = counts & ((targets < 0) | (targets >= logits.shape[1]))
    if targets.device.type == "cpu" and absent.any():
        row = int(absent.nonzero()[0])
        raise RuntimeError(f"{op}: targets must be in [0, {logits.shape[1]}) or ignore_index {ignore_index}, "
                           f"got {int(targets[row])} (row {row})")
    return torch.where(counts & ~absent, targets, 0).long(), counts, absent


def row_results(logits, target, smoothing: float = 0.0):
    """(loss, el2n, top, log_sum) of every row"""
    x, at = widen(logits), target.unsqueeze(1)
    logit, rest = x.gather(1, at).squeeze(1), x.scatter(1, at, -torch.inf)
    others = rest.amax(1)
    e = sm.exponential(rest - torch.where(others == -torch.inf, 0, others).unsqueeze(1))
    loss, el2n, top, log_sum = sm.row_result(others, e.sum(1), e.square().sum(1), logit)
    if smoothing:
        loss = sm.smoothed_loss(loss, top, log_sum, x.mean(1), smoothing)
        el2n = gaps(x, target, top, log_sum, smoothing).square().sum(1).sqrt()
    return loss, el2n, top, log_sum


def gaps(x, target, top, log_sum, smoothing: float):
    """softmax - target distribution, which is d loss / d logits"""
    top, log_sum, at, uniform = top.unsqueeze(1), log_sum.unsqueeze(1), target.unsqueeze(1), smoothing / x.shape[1]
    of_target = sm.target_gap(x.gather(1, at), top, log_sum, smoothing, uniform)
    return sm.class_gap(x, top, log_sum, uniform).scatter(1, at, of_target)
