"""Small networks of every family that accelerate knows: a row of equal layers, quantized, between two that are not."""

import pytest
import torch
from lsq_quantizers import Detached, FirstBatch
from step_layers import DetachedConv, RowLinear, StepConv
from torch import nn
from torch.ao import quantization as aoq

INPUTS, CLASSES = 96, 10


class Quantized(nn.Module):
    """A linear layer on what two quantizers give."""

    def __init__(self, layer, weights, activations):
        super().__init__()
        self.layer, self.weights, self.activations = layer, weights, activations

    def forward(self, x):
        return nn.functional.linear(self.activations(x), self.weights(self.layer.weight), self.layer.bias)


def plain(width, depth, make=nn.Linear):
    middle = [layer for _ in range(depth) for layer in (make(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), *middle, nn.Linear(width, CLASSES))


def around(quantizers):
    """Return a function that makes a network with what quantizers(weight) gives for every middle layer."""
    def make(width, depth):
        def layer(inputs, outputs):
            linear = nn.Linear(inputs, outputs)
            return Quantized(linear, *quantizers(linear.weight))
        return plain(width, depth, layer)
    return make


def fake_quantize(weight):
    of_weight = aoq.FakeQuantize(aoq.PerChannelMinMaxObserver, -128, 127, dtype=torch.qint8,
                                 qscheme=torch.per_channel_symmetric)
    return of_weight, aoq.FakeQuantize(aoq.MovingAverageMinMaxObserver)


def fused(weight):
    of_weight = aoq.FusedMovingAvgObsFakeQuantize(
        aoq.MovingAveragePerChannelMinMaxObserver, -128, 127, dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    return of_weight, aoq.FusedMovingAvgObsFakeQuantize()


def learnable(weight):
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize
    make = dict(observer=aoq.MovingAverageMinMaxObserver, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    return [_LearnableFakeQuantize(quant_min=-8, quant_max=7, **make) for _ in range(2)]


def lsq(weight):
    return Detached(factor="channel"), FirstBatch()


def groups(weight):
    from test_drop_in_lsq_groups import Grouped, Shifted
    return Grouped(weight), Shifted()


def torchao(width, depth):
    pytest.importorskip("torchao")
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
    model = plain(width, depth)
    config = QATConfig(step="prepare", weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32),
                       activation_config=IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False))
    quantize_(model, config, lambda module, _: isinstance(module, nn.Linear) and module.weight.shape == (width, width))
    return model


def brevitas(width, depth):
    qnn = pytest.importorskip("brevitas.nn")
    from brevitas.quant import Int8WeightPerChannelFloat

    def layer(inputs, outputs):
        return nn.Sequential(
            qnn.QuantReLU(bit_width=4, scaling_impl_type="const", max_val=3.0),
            qnn.QuantLinear(inputs, outputs, True, weight_quant=Int8WeightPerChannelFloat,
                            weight_scaling_impl_type="parameter_from_stats"))
    return plain(width, depth, layer)


def lsq_layers(width, depth):
    def convolution(inputs, outputs):
        return nn.Sequential(nn.Unflatten(1, (inputs, 1, 1)), StepConv(inputs, outputs, 1),
                             DetachedConv(outputs, outputs, 1), nn.Flatten(), RowLinear(outputs, outputs))
    return plain(width, depth, convolution)


FAMILIES = {"torch.ao": around(fake_quantize), "torch.ao-fused": around(fused), "torch.ao-learnable": around(learnable),
            "torchao": torchao, "brevitas": brevitas, "lsq": around(lsq), "lsq-groups": around(groups),
            "lsq-layers": lsq_layers}


def made(name, width=128, depth=1):
    torch.manual_seed(0)
    return FAMILIES[name](width, depth)


def step_of(model):
    """Return a training step on a batch of so many rows, with SGD."""
    parameters = list(model.parameters())

    def step(rows=192, device="cpu"):
        x = torch.randn(rows, INPUTS, device=device)
        loss = nn.functional.cross_entropy(model(x), torch.zeros(rows, dtype=torch.int64, device=device))
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    parameter.sub_(0.01 * grad)
        return loss
    return step
