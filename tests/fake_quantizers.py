"""Fake-quantizers of torch.ao, each a function that makes one, and how an original and its twin are compared."""

import copy
from functools import partial

import torch
from torch.ao.quantization import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    default_fixed_qparams_range_0to1_observer,
)

from mbq_train import accelerate

TENSOR, CHANNEL = MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
S8 = {"dtype": torch.qint8, "quant_min": -128, "quant_max": 127}
PER_TENSOR, PER_CHANNEL = {"qscheme": torch.per_tensor_symmetric}, {"qscheme": torch.per_channel_symmetric}
FIXED = {
    "moving": partial(FakeQuantize, TENSOR),
    "moving-symmetric": partial(FakeQuantize, TENSOR, **S8, **PER_TENSOR),
    "moving-symmetric-unsigned": partial(FakeQuantize, TENSOR, quant_min=0, quant_max=254, **PER_TENSOR),
    "extremes-reduced": partial(FakeQuantize, MinMaxObserver, reduce_range=True),
    "histogram": partial(FakeQuantize, HistogramObserver),
    "channels": partial(FakeQuantize, PerChannelMinMaxObserver, **S8, **PER_CHANNEL),
    "channels-4bit": partial(FakeQuantize, PerChannelMinMaxObserver, -8, 7, dtype=torch.qint8, **PER_CHANNEL),
    "channels-affine-axis1": partial(FakeQuantize, CHANNEL, qscheme=torch.per_channel_affine, ch_axis=1),
    "fixed": partial(FixedQParamsFakeQuantize, default_fixed_qparams_range_0to1_observer),
    "fused": FusedMovingAvgObsFakeQuantize,
    "fused-symmetric": partial(FusedMovingAvgObsFakeQuantize, **S8, **PER_TENSOR),
    "fused-channels": partial(FusedMovingAvgObsFakeQuantize, CHANNEL, **S8, **PER_CHANNEL),
    "fused-channels-affine": partial(FusedMovingAvgObsFakeQuantize, CHANNEL, qscheme=torch.per_channel_affine),
    "fused-axis1": partial(FusedMovingAvgObsFakeQuantize, CHANNEL, qscheme=torch.per_channel_affine, ch_axis=1),
}
SHAPES = {"small": (48, 48), "matrix": (48, 1200), "image": (48, 48, 5, 6)}


def twins(make):
    """Return a module and an accelerated copy of it."""
    original = make()
    ours = copy.deepcopy(original)
    assert len(accelerate(ours).replaced) == 1
    return original, ours


def assert_same(one, other):
    assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


def assert_same_state(original, ours):
    states = original.state_dict(), ours.state_dict()
    assert list(states[0]) == list(states[1])
    for one, other in zip(states[0].values(), states[1].values(), strict=True):
        assert_same(one, other)
