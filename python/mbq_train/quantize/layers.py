"""Linear, Conv1d, Conv2d and transformers' Conv1D with quantized weights and inputs."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .bits import BitState
from .learned import Learned
from .quantizer import Quantizer, weight_quantizer_of
from .recomputation import runs_at
from .saved import can_recompute, product
from .specs import ActivationSpec, WeightSpec


class Specs(NamedTuple):
    """What quantizes a layer."""

    weights: WeightSpec
    activations: ActivationSpec


class _QuantLayer:
    """What the quantized layers share: how they are made from float ones, and their two quantizers."""

    @classmethod
    def from_float(cls, source: nn.Module, bit_state: BitState, *, weights: WeightSpec = Learned(),
                   activations: ActivationSpec | None = None, layer_name: str = "layer"):
        """Return the quantized form of `source`, over the same Parameter objects and with everything else `source`
        carries.

        `source` must not be used any more. Each layer has an activation quantizer of its own, also where several
        layers read the same tensor.

        Args:
            source: nn.Linear, nn.Conv1d, nn.Conv2d or transformers' Conv1D - gives parameters, settings, mode, device
                and dtype.
            bit_state: the model's.
            weights, activations: make the two quantizers; None: the activations that `weights` says.
            layer_name: what error messages call the layer.
        """
        layer = cls.__new__(cls)
        layer.__setstate__({name: copy.copy(value) if isinstance(value, (dict, set)) else value
                            for name, value in vars(source).items()})
        layer.specs = Specs(weights, weights.activations() if activations is None else activations)
        layer.input_quantizer = layer.specs.activations.input_quantizer(bit_state, like=source.weight,
                                                                        layer_name=layer_name)
        layer.weight_quantizer = weights.weight_quantizer(bit_state, layer.weight_by_channel(), layer_name=layer_name)
        for quantizer in (layer.input_quantizer, layer.weight_quantizer):
            if isinstance(quantizer, Quantizer):
                quantizer.layer_bits = quantizer.layer_bits.to(source.weight.device)
        layer.register_load_state_dict_pre_hook(_keep_quantizers)
        return layer.train(source.training)

    def weight_by_channel(self) -> torch.Tensor:
        """Return the float weight with its output channels first, (C, ...): what the weight quantizer takes."""
        return self.weight

    def quantized_weight(self) -> torch.Tensor:
        """Return the weight at the bit-width in use, (C, ...)."""
        quantizer = self.weight_quantizer
        if not torch.compiler.is_compiling() and weight_quantizer_of(self):
            runs_at(quantizer.bit_state, quantizer.layer_name)
        return quantizer(self.weight_by_channel())

    def product(self, function, x: torch.Tensor) -> torch.Tensor:
        """Return function(x_hat, w_hat, bias); of x and x_hat its backward keeps x alone: see `saved`."""
        x_hat, w_hat = self.input_quantizer(x), self.quantized_weight()
        state = getattr(self.weight_quantizer, "bit_state", None)  # a stored weight has none
        if not can_recompute() or state is None or not state.recompute:
            return function(x_hat, w_hat, self.bias)
        return product(function, x_hat, w_hat, self.bias, (w_hat,) if x_hat is x else (x_hat, w_hat))


class QuantLinear(_QuantLayer, nn.Linear):
    """nn.Linear on fake-quantized weights and inputs: y = x_hat @ w_hat.T + bias. Made by `from_float`."""

    def forward(self, input):
        return self.product(F.linear, input)


class QuantTransposedLinear(_QuantLayer, nn.Module):
    """transformers' Conv1D on fake-quantized weights and inputs: y = x_hat @ w_hat.T + bias. Made by `from_float`.

    weight stays as it is stored, (in, out); w_hat is that of its transpose, with a scale per output channel.
    """

    def weight_by_channel(self) -> torch.Tensor | None:
        return None if self.weight is None else self.weight.t()  # None: a stored weight has taken its place

    def forward(self, x):
        return self.product(F.linear, x)

    def extra_repr(self) -> str:
        return f"in_features={self.nx}, out_features={self.nf}"


class QuantConv1d(_QuantLayer, nn.Conv1d):
    """nn.Conv1d on fake-quantized weights and inputs; padding as in QuantConv2d. Made by `from_float`."""

    def forward(self, input):
        return self.product(self._conv_forward, input)


class QuantConv2d(_QuantLayer, nn.Conv2d):
    """nn.Conv2d on fake-quantized weights and inputs. Made by `from_float`.

    The input is quantized before it is padded, so zero padding stays exactly 0, with an offset too.
    """

    def forward(self, input):
        return self.product(self._conv_forward, input)


def weight_layers(model: nn.Module, *, every_name: bool = False) -> dict[str, nn.Module]:
    """Return the layers of `model` whose weight is quantized, by their first name, or by every name they have."""
    return {name: module for name, module in model.named_modules(remove_duplicate=not every_name)
            if weight_quantizer_of(module) is not None}


def _keep_quantizers(layer, state_dict, prefix: str, *_) -> None:
    """Leave the quantizers as they are where load_state_dict gets a float layer's state: complete the copy it makes."""
    names = ("input_quantizer", "weight_quantizer")
    if f"{prefix}weight" not in state_dict or any(key.startswith(f"{prefix}{name}.") for key in state_dict
                                                  for name in names):
        return
    for name in names:
        getattr(layer, name).state_dict(destination=state_dict, prefix=f"{prefix}{name}.")
