"""Weight bias correction: moments of channels, and what maps one set of moments to another. Twin: csrc/correction.h."""

from typing import NamedTuple

import torch

EPS = 1e-8  # beside a deviation that is divided by
CONSTANT = 1e-6  # a deviation of up to this share of the mean is rounding noise: the channel is constant


class Moments(NamedTuple):
    """Of every channel, in float64; the deviation is the unbiased one, 0 for a single element."""
    mean: torch.Tensor
    deviation: torch.Tensor


def moments(x, axis: int | None) -> Moments:
    rows = (x.reshape(1, x.numel()) if axis is None else x.movedim(axis, 0).unsqueeze(-1).flatten(1)).double()
    mean = rows.mean(1) if rows.shape[1] else rows.new_zeros(len(rows))
    return Moments(mean, rows.std(1) if rows.numel() > len(rows) else torch.zeros_like(mean))


def ratio_of_deviations(quantized: Moments, reference: Moments, eps: float):
    """sd(reference) / (sd(quantized) + eps), 0 where quantized is constant"""
    constant = quantized.deviation <= CONSTANT * quantized.mean.abs()
    return torch.where(constant, 0, reference.deviation / (quantized.deviation + eps))


def fold(codes: Moments, reference: Moments, scale):
    """(factor, scale', offset') with code * scale' + offset' = factor * (x_hat - mean(x_hat)) + mean(reference)

    In scale's dtype. Where all codes are one value, scale' stays scale, which a store takes, and offset' does it all.
    """
    step = scale.double()
    factor = ratio_of_deviations(Moments(codes.mean * step, codes.deviation * step), reference, EPS)
    constant = codes.deviation <= CONSTANT * codes.mean.abs()
    scale_ = torch.where(constant, step, factor * step).to(scale.dtype)
    offset = reference.mean - scale_.double() * codes.mean  # of the rounded scale': its rounding moves no mean
    return torch.stack([factor.to(scale.dtype), scale_, offset.to(scale.dtype)])
