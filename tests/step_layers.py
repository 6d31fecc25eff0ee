"""Layers that quantize inside their forward with learned step sizes, written after the papers."""

import math

import torch
from torch import nn
from torch.nn import functional


def through(x):
    return (x.round() - x).detach() + x


class Written(torch.autograd.Function):
    """Esser et al., 2020, arXiv 1902.08153, eq. 1-3, with rows of scales of at least `least` where it is given."""

    @staticmethod
    def forward(ctx, x, step, low, high, least):
        ctx.asked = step.shape
        if least:
            step = torch.where(step > least, step, least)
        ctx.save_for_backward(x, step)
        ctx.numbers = low, high
        return (x / step).round().clamp(low, high) * step

    @staticmethod
    def backward(ctx, grad):
        x, step = ctx.saved_tensors
        low, high = ctx.numbers
        v = x / step
        below, above = (v < low).float(), (v > high).float()
        inside = 1 - below - above
        slope = below * low + above * high + inside * (v.round() - v)
        to_step = (slope * grad / math.sqrt(x.numel() * high)).sum_to_size(ctx.asked)
        return inside * grad, to_step, None, None, None


class StepConv(nn.Conv2d):
    """A convolution with one step, whose first value comes from the weight."""

    def __init__(self, *args, bits=4, **kwargs):
        super().__init__(*args, **kwargs)
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.alpha = nn.Parameter(torch.ones(1))
        self.register_buffer("started", torch.zeros(1))

    def forward(self, x):
        if self.training and self.started == 0:
            self.alpha.data.copy_(2 * self.weight.abs().mean() / math.sqrt(self.high))
            self.started.fill_(1)
        weight = Written.apply(self.weight, self.alpha, self.low, self.high, 0)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class DetachedConv(nn.Conv2d):
    """A convolution with a step for each channel and one for its input, by detaching."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.step = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.05))
        self.step_of_input = nn.Parameter(torch.tensor(0.2))

    def quantized(self, x, step, low, high):
        part = step * (1 / math.sqrt(x.numel() * high))
        step = (step - part).detach() + part
        return through((x / step).clamp(low, high)) * step

    def forward(self, x):
        x, weight = self.quantized(x, self.step_of_input, 0, 255), self.quantized(self.weight, self.step, -4, 3)
        return self._conv_forward(x, weight, self.bias)


class RowLinear(nn.Linear):
    """Liu et al., 2025, arXiv 2502.02631, of 3 and more bits: a clipped step for each row, the bias added after."""

    def __init__(self, inputs, outputs, bits=4, bias=True):
        super().__init__(inputs, outputs, bias)
        self.bits = bits
        self.clip = nn.Parameter(torch.full((outputs, 1), 0.02))

    def forward(self, input_):
        assert len(self.weight.size()) == 2
        weight = self.weight
        if self.bits < 16:
            weight = Written.apply(weight, self.clip, -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1, 1e-5)
        out = functional.linear(input_, weight.to(input_.dtype))
        if self.bias is not None:
            out += self.bias.view(1, -1).expand_as(out)
        return out


class AbsoluteLinear(nn.Linear):
    """A step that is kept positive by its absolute value, with gradients as they come."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.s = nn.Parameter(torch.tensor(-0.03))

    def forward(self, x):
        step = self.s.abs()
        return functional.linear(x, weight=through((self.weight / step).clamp(-8, 7)) * step, bias=self.bias)
