"""Quantizers as people write them after the papers of learned step size quantization."""

import math

import torch
from torch import nn


def through(x):
    return (x.round() - x).detach() + x


class Detached(nn.Module):
    """Esser et al., 2020, arXiv 1902.08153, eq. 1-3, by detaching."""

    def __init__(self, bits=4, signed=True, channels=None, narrow=False, factor="tensor"):
        super().__init__()
        self.low = -(2 ** (bits - 1)) + narrow if signed else 0
        self.high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        self.width = nn.Parameter(torch.full((1,) if channels is None else (channels, 1, 1, 1), 0.21))
        self.factor = factor

    def forward(self, x):
        count = x.numel() if self.factor == "tensor" else x.numel() // self.width.numel()
        part = self.width * (1.0 / (count * self.high) ** 0.5)
        width = (self.width - part).detach() + part
        return through(torch.clamp(x / width, self.low, self.high)) * width


class Written(torch.autograd.Function):
    """The same with its backward written out: the gradient of x is passed on, not multiplied and divided."""

    @staticmethod
    def forward(ctx, x, step, factor, low, high):
        ctx.save_for_backward(x, step)
        ctx.numbers = factor, low, high
        return (x / step).round().clamp(low, high) * step

    @staticmethod
    def backward(ctx, grad):
        x, step = ctx.saved_tensors
        factor, low, high = ctx.numbers
        v = x / step
        inside = (v >= low) & (v <= high)
        slope = torch.where(inside, v.round() - v, v.clamp(low, high))
        return torch.where(inside, grad, 0), (slope * grad * factor).sum().reshape(step.shape), None, None, None


class FirstBatch(nn.Module):
    """With a first value from the first batch in training."""

    def __init__(self, bits=4):
        super().__init__()
        self.high = 2**bits - 1
        self.alpha = nn.Parameter(torch.zeros(()))
        self.register_buffer("started", torch.zeros(1))

    def forward(self, x):
        if self.training and self.started == 0:
            self.alpha.data.copy_(2 * x.abs().mean() / math.sqrt(self.high))
            self.started.fill_(1)
        return Written.apply(x, self.alpha, 1 / math.sqrt(x.numel() * self.high), 0, self.high)


class RoundedFirst(nn.Module):
    """Rounds before it clamps, so that what lies within half a step of an edge gets gradients."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x):
        return torch.clamp(through(x / self.size), -8, 7) * self.size


class OneDimension(nn.Module):
    """With a scale a channel in one dimension, which it gives those of x, or lets be that of the last axis."""

    def __init__(self, channels, last=False):
        super().__init__()
        self.step, self.last = nn.Parameter(torch.full((channels,), 0.17)), last

    def forward(self, x):
        step = self.step if self.last else self.step.view(-1, *[1] * (x.dim() - 1))
        return through(torch.clamp(x / step, -8, 7)) * step


class OfImages(OneDimension):
    """The same for weights of convolutions alone."""

    def forward(self, x):
        step = self.step.view(-1, 1, 1, 1)
        return through(torch.clamp(x / step, -8, 7)) * step
