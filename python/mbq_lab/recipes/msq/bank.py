"""LsbBank: every weight quantized, and what its last bits cost, in one call."""

import torch
from torch import nn

import mbq_kernels
from mbq_train.quantize.quantizer import autocast_dtype
from mbq_train.quantize.round_clamp import round_clamp_layers


class LsbBank:
    """The quantized weights of a step with the penalty on their last bits, from one `round_clamp_lsb_foreach`.

    Takes the place of a WeightBank. Its backward is the loss's own: the gradients of task and penalty are added in one
    pass over the weights. Layers without an entry in `low_bits` quantize for themselves.

    Args:
        model: with a RoundClampQuantizer of one form in its layers; their weights share a dtype and a device.
        unit_gradient: leave the factor 2^bits out of the penalty's gradient.

    Raises ValueError for layers of two forms.
    """

    def __init__(self, model: nn.Module, *, unit_gradient: bool):
        self.layers, self.unit_gradient = round_clamp_layers(model), unit_gradient
        forms = {layer.weight_quantizer.form for layer in self.layers.values()}
        if len(forms) > 1:
            raise ValueError(f"msq: model must have one form in all layers, got {', '.join(sorted(forms))}")
        self.low_bits, self.penalty = {}, None

    def fill(self) -> None:
        """Quantize the layers in `low_bits` for the forward that follows, and set `penalty`."""
        if not self.low_bits:
            return
        values, penalties, _ = self._call()
        for name, value in zip(self.low_bits, values, strict=True):
            quantizer = self.layers[name].weight_quantizer
            dtype = autocast_dtype(value) or value.dtype
            quantizer.hold({quantizer.bit_state.bits: value.to(dtype)})
        self.penalty = penalties.sum()

    def backward(self) -> None:
        """Do nothing: autograd has carried the gradients to the weights."""

    def drop(self) -> None:
        """Let the weights go: layers quantize for themselves again."""
        self.penalty = None
        for state in {layer.weight_quantizer.bit_state for layer in self.layers.values()}:
            state.release()

    @torch.no_grad()
    def rates(self) -> dict[str, float]:
        """Return the share of each layer's weights whose `low_bits` last bits are in use, of the layers that have some.
        """
        return dict(zip(self.low_bits, self._call()[2].tolist(), strict=True)) if self.low_bits else {}

    def _call(self):
        layers = [self.layers[name] for name in self.low_bits]
        xs = [layer.weight_quantizer.normalised(layer.weight_by_channel()) for layer in layers]
        limits = torch._foreach_norm([x.detach() for x in xs], float("inf"))
        return mbq_kernels.round_clamp_lsb_foreach(
            xs, bits=[layer.weight_quantizer.bits for layer in layers], k=list(self.low_bits.values()),
            limits=list(limits), form=layers[0].weight_quantizer.form, unit_gradient=self.unit_gradient)
