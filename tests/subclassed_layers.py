"""Layers and norms that inherit from supported ones, those that compute the same and those that do not."""

import torch
import torch.nn.functional as F
from torch import nn


def entries(plan):
    return {entry.name: entry for entry in plan.entries}


class Named(nn.Linear):
    pass


class SuperCall(nn.Linear):
    def forward(self, x):
        return super().forward(x)


class ByHand(nn.Linear):
    """Sums in another order."""

    def forward(self, x):
        return (x.unsqueeze(-2) * self.weight).sum(-1) + self.bias


class PlainConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PlainAttention(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        return super().forward(query, key, value, **options)


class SelfAttention(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.attention = kind(4, 2)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=True)[0]


class Chain(nn.Module):
    """Two ends that stay in float and `mid` between them; example: what it takes."""

    def __init__(self, mid, *, images=False):
        super().__init__()
        first, last = (nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1)) if images else (nn.Linear(4, 4), nn.Linear(4, 4))
        self.layers = nn.ModuleDict({"first": first, "mid": mid, "last": last})
        self.example = torch.randn(2, 2, 9, 9) if images else torch.randn(3, 4)

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std(dim=(1, 2, 3), keepdim=True), self.bias)


class StandardisedWithin(nn.Conv2d):
    """Below forward, which is the base's."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Same(nn.Conv2d):
    """Pads as TensorFlow does."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Adapted(nn.Linear):
    """Low-rank adaptation: nothing at first, since `up` starts at 0."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(4, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class AdaptedByLayers(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class Masked(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool))

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, self.training))


class Frozen(nn.Linear):
    """Another gradient: none in the weight."""

    def forward(self, x):
        return F.linear(x, self.weight.detach(), self.bias)


class Scaled(nn.Linear):
    @property
    def weight(self):
        return self._parameters["weight"] * 2


class WithScale(nn.Linear):
    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


class Caller(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, scale=1.0)


class TwoScales(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        out, weights = super().forward(query, key, value, **options)
        return out * 1.5, weights


class SplitNorm(nn.BatchNorm2d):
    """A BatchNorm in a BatchNorm, for half of the batch."""

    def __init__(self, channels):
        super().__init__(channels)
        self.other = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.cat([super().forward(x[::2]), self.other(x[1::2])])


class Direct(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, x):
        pass


class SyncAct(nn.SyncBatchNorm):
    def forward(self, x):
        return super().forward(x).relu()


class Gain(nn.Linear):
    """Computes what Linear does while its gain is 1."""

    gain = 1.0

    def forward(self, x, factor=1.0):
        return super().forward(x) * self.gain * factor


class CallsTwice(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call, self.a, self.b, self.c = call, nn.Linear(6, 16), Gain(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        self.b.gain = 1.0
        return self.c(self.call(self.b, self.b(self.a(x))))
