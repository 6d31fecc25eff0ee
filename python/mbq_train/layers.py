"""Linear and Conv2d with quantized weights and inputs."""

import torch.nn.functional as F
from torch import nn

from .bits import BitState
from .quantizers import ActivationQuantizer, WeightQuantizer


class QuantLinear(nn.Linear):
    """nn.Linear on fake-quantized weights and inputs: y = x_hat @ w_hat.T + bias. Made by `from_float`."""

    @classmethod
    def from_float(cls, linear: nn.Linear, bit_state: BitState, **options):
        """A QuantLinear over the same Parameter objects as `linear`; `options` as for ActivationQuantizer."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        return _adopt(layer, linear, bit_state, options)

    def forward(self, x):
        return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)


class QuantConv2d(nn.Conv2d):
    """nn.Conv2d on fake-quantized weights and inputs. Made by `from_float`.

    The input is quantized before it is padded, so zero padding stays exactly 0, with an offset too.
    """

    @classmethod
    def from_float(cls, conv: nn.Conv2d, bit_state: BitState, **options):
        """A QuantConv2d over the same Parameter objects as `conv`; `options` as for ActivationQuantizer."""
        layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride, padding=conv.padding,
                    dilation=conv.dilation, groups=conv.groups, bias=conv.bias is not None,
                    padding_mode=conv.padding_mode, device="meta")
        return _adopt(layer, conv, bit_state, options)

    def forward(self, x):
        return self._conv_forward(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)


def _adopt(layer, source, bit_state, options):
    """Give `layer`, built without memory, the parameters and mode of `source`, and its quantizers."""
    layer.weight, layer.bias = source.weight, source.bias
    layer.input_quantizer = ActivationQuantizer(bit_state, like=source.weight, **options)
    layer.weight_quantizer = WeightQuantizer(bit_state, source.weight, layer_name=options.get("layer_name", "layer"))
    return layer.train(source.training)
