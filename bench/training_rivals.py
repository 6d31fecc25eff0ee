"""Networks whose layers other libraries quantize: the same layers as in ours, each by the library's own modules."""

import warnings
from collections.abc import Callable

import eager_quantizers as eager
import torch
import torch.nn.functional as F
from torch import nn

from mbq_train import accelerate
from mbq_train.quantize.quantizer import Quantizer

PLAIN = (nn.Linear, nn.Conv2d)


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of our converted network that have quantizers, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, PLAIN)
            and any(isinstance(child, Quantizer) for child in layer.children())}


def swap(model: nn.Module, names, make) -> nn.Module:
    """Put make(layer, name) in the place of every layer of `names`."""
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, make(model.get_submodule(name), name))
    return model


class Lsq(nn.Module):
    """A learned step, as lsq-net writes it, that starts from a quantizer of ours."""

    def __init__(self, quantizer):
        super().__init__()
        scale, *offset = quantizer.current()
        self.scale = nn.Parameter(quantizer.scale(quantizer.bits).detach().clone())
        self.offset = nn.Parameter(offset[0].detach().clone()) if offset and offset[0] is not None else None
        options = quantizer.options()
        self.bits, self.signed, self.axis = options["bits"], options["signed"], options["axis"]

    def forward(self, x):
        return eager.fake_quantize(x, self.scale, self.offset, bits=self.bits, signed=self.signed, axis=self.axis)


class LsqLayer(nn.Module):
    """A linear layer or convolution on a quantized weight and a quantized input."""

    def __init__(self, layer: nn.Module, ours: nn.Module):
        super().__init__()
        self.layer, self.weight, self.input = layer, Lsq(ours.weight_quantizer), Lsq(ours.input_quantizer)

    def forward(self, x):
        x, weight, bias = self.input(x), self.weight(self.layer.weight), self.layer.bias
        return self.layer._conv_forward(x, weight, bias) if isinstance(self.layer, nn.Conv2d) else F.linear(
            x, weight, bias)


def lsq(model: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    return swap(model, layers, lambda layer, name: LsqLayer(layer, layers[name]))


def compiled_lsq(model: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(lsq(model, layers))


def accelerated(quantize: Callable, model: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    """Return a network of another library's modules on our kernels. Raises NotImplementedError where nothing of it can
    be replaced, or where there is no such network."""
    try:
        model = quantize(model, layers)
    except Exception as error:
        raise NotImplementedError(f"there is no original: {error}") from error
    with warnings.catch_warnings():  # that nothing is replaced, which is said below
        warnings.simplefilter("ignore")
        report = accelerate(model)
    if not report.replaced:
        reasons = dict.fromkeys(entry.why for entry in report.left)
        raise NotImplementedError(f"accelerate replaces none of its modules: {'; '.join(reasons) or 'none is known'}")
    return model


def torchao(model: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    """int8 activations a token and int4 weights in groups of 32, its documented recipe."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
    if not all(isinstance(layer, nn.Linear) for layer in layers.values()):
        raise NotImplementedError("it quantizes linear layers alone")
    config = QATConfig(step="prepare", weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32),
                       activation_config=IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False))
    quantize_(model, config, filter_fn=lambda module, name: name in layers)
    return model


def brevitas(model: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    """Statistics of the weight for its scale, a learned scale for inputs; both at the bits of ours."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    def make(layer, name):
        bits = layers[name].weight_quantizer.bits
        options = dict(bias=layer.bias is not None, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=bits,
                       input_quant=Int8ActPerTensorFloat, input_bit_width=bits)
        if isinstance(layer, nn.Linear):
            made = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
        else:
            made = qnn.QuantConv2d(layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride,
                                   padding=layer.padding, groups=layer.groups, **options)
        made.weight.data.copy_(layer.weight.data)
        if layer.bias is not None:
            made.bias.data.copy_(layer.bias.data)
        return made.to(layer.weight.device)
    return swap(model, layers, make)


def torch_ao(model: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    """Moving averages of the smallest and largest values, fused with the quantization, as its default has it."""
    from torch.ao.nn import qat
    from torch.ao.quantization import (
        FusedMovingAvgObsFakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        QConfig,
    )

    def make(layer, name):
        bits = layers[name].weight_quantizer.bits
        high = 2 ** (bits - 1) - 1
        layer.qconfig = QConfig(
            activation=FusedMovingAvgObsFakeQuantize.with_args(
                observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=2**bits - 1, dtype=torch.quint8),
            weight=FusedMovingAvgObsFakeQuantize.with_args(
                observer=MovingAveragePerChannelMinMaxObserver, quant_min=-high - 1, quant_max=high, dtype=torch.qint8,
                qscheme=torch.per_channel_symmetric, ch_axis=0))
        quantize_input = layer.qconfig.activation()
        made = (qat.Linear if isinstance(layer, nn.Linear) else qat.Conv2d).from_float(layer)
        return nn.Sequential(quantize_input, made).to(layer.weight.device)
    return swap(model, layers, make)
