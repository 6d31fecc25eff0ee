"""Linear, Conv1d and Conv2d with quantized weights and inputs."""

import copy

import torch.nn.functional as F
from torch import nn

from .bits import BitState
from .quantizers import ActivationQuantizer, WeightQuantizer


class _QuantLayer:
    """What the quantized layers share: how they are made from float ones, and their two quantizers."""

    @classmethod
    def from_float(cls, source: nn.Module, bit_state: BitState, *, activations: bool = True, layer_name: str = "layer",
                   weight_quantizer=WeightQuantizer, input_quantizer=ActivationQuantizer, **options):
        """The quantized form of `source`, over the same Parameter objects and with everything else `source` carries.

        `source` must not be used any more. Each layer has an activation quantizer of its own, also where several
        layers read the same tensor.

        Args:
            source: nn.Linear, nn.Conv1d or nn.Conv2d - gives parameters, settings, mode, device and dtype.
            bit_state: the model's.
            activations: quantize the input; False quantizes the weight alone.
            layer_name: what error messages call the layer.
            weight_quantizer, input_quantizer: make the two quantizers, with the arguments of WeightQuantizer and
                ActivationQuantizer.
            options: `signed`, `learn_offset`, `own_bits` as for ActivationQuantizer.
        """
        layer = cls.__new__(cls)
        layer.__setstate__({name: copy.copy(value) if isinstance(value, (dict, set)) else value
                            for name, value in vars(source).items()})
        layer.input_quantizer = input_quantizer(bit_state, like=source.weight, layer_name=layer_name,
                                                **options) if activations else nn.Identity()
        layer.weight_quantizer = weight_quantizer(bit_state, source.weight, layer_name=layer_name)
        return layer.train(source.training)


class QuantLinear(_QuantLayer, nn.Linear):
    """nn.Linear on fake-quantized weights and inputs: y = x_hat @ w_hat.T + bias. Made by `from_float`."""

    def forward(self, x):
        return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)


class QuantConv1d(_QuantLayer, nn.Conv1d):
    """nn.Conv1d on fake-quantized weights and inputs; padding as in QuantConv2d. Made by `from_float`."""

    def forward(self, x):
        return self._conv_forward(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)


class QuantConv2d(_QuantLayer, nn.Conv2d):
    """nn.Conv2d on fake-quantized weights and inputs. Made by `from_float`.

    The input is quantized before it is padded, so zero padding stays exactly 0, with an offset too.
    """

    def forward(self, x):
        return self._conv_forward(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)
