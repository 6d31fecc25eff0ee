"""Weight bias correction: moments of channels, and what maps one set of moments to another. Twin: math/correction.h."""

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


def moments_of(pivot, total, squares, count: int) -> Moments:
    """From the sums of x - pivot and of its square over `count` elements."""
    if count < 2:
        return Moments(pivot + total, torch.zeros_like(total))
    variance = (squares - total * total / count) / (count - 1)
    return Moments(pivot + total / count, variance.clamp(min=0).sqrt())


def ratio_of_deviations(quantized: Moments, reference: Moments, eps: float):
    """sd(reference) / (sd(quantized) + eps), 0 where quantized is constant"""
    constant = quantized.deviation <= CONSTANT * quantized.mean.abs()
    return torch.where(constant, 0, reference.deviation / (quantized.deviation + eps))


def correction_rows(quant: Moments, ref: Moments, eps: float, dtype):
    """(6, C): factor, centre, shift, sd(quant), mean(ref), sd(ref); y = (x - centre) * factor + shift"""
    factor = ratio_of_deviations(quant, ref, eps)
    centre = quant.mean.to(dtype)  # as it is taken off; what its rounding leaves goes into the shift
    shift = ref.mean + factor * (centre - quant.mean)
    return torch.stack([factor, centre, shift, quant.deviation, ref.mean, ref.deviation]).to(dtype)


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
