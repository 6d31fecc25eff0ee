"""WeightBank: every quantized weight at every bit-width from one read of all weights, one fused backward."""

from collections import defaultdict

import torch
from torch import nn

from .bits import quantized
from .quantizer import weight_quantizer_of


class WeightBank:
    """The quantized weights of a model for one step of the schedule that accumulates gradients over bit-widths.

    Between `fill` and `backward` the weights stay the same, so all bit-widths of all layers are one
    `fake_quantize_foreach` (where weights are rounded twice or corrected, one call for all bit-widths a layer): its
    results are leaves that every forward reads and every backward adds to, and one fused backward carries their
    gradients to weights and scales. Costs 2 K copies of the quantized weights (values and gradients), K bit-widths; see
    `nbytes`.

    Args:
        model: what `convert` returned.
        bits: the bit-widths of a step.
    """

    def __init__(self, model: nn.Module, bits):
        self.bits = quantized(bits)  # at 32 bits a layer reads its weight as it is
        groups = defaultdict(dict)
        for module in model.modules():
            quantizer = weight_quantizer_of(module)
            if quantizer is not None:
                kind = type(quantizer), quantizer.correction, module.weight.dtype, module.weight.device
                groups[kind][quantizer] = module
        self.groups = list(groups.values())
        self._outs = []

    @property
    def nbytes(self) -> int:
        """Return the bytes of the copies that a step holds."""
        return 2 * len(self.bits) * sum(layer.weight.nbytes for group in self.groups for layer in group.values())

    def fill(self) -> None:
        """Quantize every weight at every bit-width, for the forwards that follow.

        Layers whose scales have no first values yet, or that have a bit-width of their own, are left to quantize for
        themselves when they are called.
        """
        for every in self.groups:
            group = {quantizer: layer.weight_by_channel() for quantizer, layer in every.items()
                     if not quantizer.missing and not quantizer.own_bits}
            if not group:
                continue
            outs = next(iter(group)).quantize_all(list(group), list(group.values()), self.bits)
            for quantizer, values in zip(group, outs, strict=True):
                leaves = [value.detach().requires_grad_() for value in values]
                quantizer.hold(dict(zip(self.bits, leaves, strict=True)))
                self._outs += zip(values, leaves, strict=True)

    def backward(self) -> None:
        """Carry what the leaves have gathered to the gradients of weights and scales, and let the copies go."""
        used = [(value, leaf.grad) for value, leaf in self._outs if leaf.grad is not None and value.requires_grad]
        self.drop()
        if used:
            values, gradients = zip(*used, strict=True)
            torch.autograd.backward(values, gradients)

    def drop(self) -> None:
        """Let the copies go: forwards quantize for themselves again."""
        self._outs = []
        for state in {quantizer.bit_state for group in self.groups for quantizer in group}:
            state.release()
