"""Small networks that have been trained, to be deployed."""

import torch
import torch.nn.functional as F
from torch import nn

from mbq_train import convert
from mbq_train.quantize.learned import WeightQuantizer

TRAINED = (8, 6, 4, 2)


class PlainDoubleRounding(WeightQuantizer):
    """What deploy needs of a DoubleRoundingQuantizer, in plain PyTorch: methods of the paper, eq. 1-3."""

    switchable = True

    def __init__(self, bit_state, weight, *, rounding, **options):
        super().__init__(bit_state, weight, **options)
        self.high_bits, self.rounding = bit_state.trained[0], rounding
        self.start(self.high_bits, weight.detach().abs().flatten(1).amax(1) / 2**self.high_bits)
        self.initialised.fill_(1)

    def forward(self, weight):
        bits = self.bit_state.bits
        if bits == 32:
            return weight
        scale = self.scale(self.high_bits).view(-1, *[1] * (weight.dim() - 1))
        top, ratio = 2 ** (self.high_bits - 1), 2 ** (self.high_bits - bits)
        high = torch.round((weight / scale).clamp(-top, top - 1))
        lower = torch.floor(high / ratio + 0.5) if self.rounding == "half_up" else torch.round(high / ratio)
        return lower.clamp(max=top / ratio - 1) * (scale * ratio)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False)
        self.grouped = nn.Conv2d(8, 12, (3, 1), groups=2, padding="same", padding_mode="circular")
        self.sequence = nn.Conv1d(12, 10, 3, dilation=2, padding=2)
        self.linear = nn.Linear(10, 33)
        self.head = nn.Linear(33, 7)

    def forward(self, x):
        x = F.relu(self.grouped(F.relu(self.conv(x))))
        x = F.relu(self.sequence(x.flatten(2)))
        return self.head(F.relu(self.linear(x.mean(-1))))


def trained(model=None, rounding="half_even", bits=TRAINED, **options):
    """`model` converted, its weight quantizers replaced, its activation scales initialised"""
    model = convert(Network() if model is None else model, bits, keep_float=(), **options)
    for layer in list(model.modules()):
        if hasattr(layer, "weight_quantizer"):
            old = layer.weight_quantizer
            layer.weight_quantizer = PlainDoubleRounding(old.bit_state, layer.weight, rounding=rounding,
                                                    layer_name=old.layer_name)
    return model


def images(count=5):
    return torch.randn(count, 3, 8, 8)
