"""Bit-widths that were not trained, made from those that were."""

import copy

import torch
from torch import nn

from .adaptation import estimate_statistics
from .batch_norm import BitBatchNorm, batch_norms
from .bits import check_bit_widths, code_range, converted_states, in_mode, set_bits
from .layer_bits import without_layer_bits
from .quantizer import quantizers


@torch.no_grad()
def add_bits(model: nn.Module, bits, batches) -> nn.Module:
    """Return a copy of a trained `model` that also computes at `bits`, without training.

    A scale means a clipping threshold scale * hi; at a new bit-width it is interpolated linearly in the bit-width
    between the thresholds of its trained neighbours, and kept beyond the outermost; an offset likewise. Weights that
    are rounded twice need nothing: every lower bit-width is in their codes. BatchNorm starts as that of the nearest
    trained bit-width, and its running statistics become the averages over `batches`; those of pairs with another
    bit-width, in a TransitionalBatchNorm, stay as they start. (Our choice; re-estimating BatchNorm for unseen
    bit-widths follows Kim et al., 2025, arXiv 2510.20673.)

    Args:
        model: what `convert` returned, with first values for all scales; left as it is.
        bits: different integers in 1..8 from high to low; those that are trained are passed over.
        batches: a sequence of images, a batch each, from the training set.

    Returns:
        the copy, for `set_bits`. A shared BatchNorm keeps its statistics: they serve the trained bit-widths.

    Raises:
        TypeError, ValueError: as `convert` for bits; 1 bit, or more bits than their codes have, of weights that are
        rounded twice; model was not converted. RuntimeError: a scale has no value yet.
    """
    bits = check_bit_widths("add_bits", bits)
    converted_states("add_bits", model)
    model, batches = copy.deepcopy(model), list(batches)
    for state in converted_states("add_bits", model):
        trained, new = state.trained, [b for b in bits if b not in state.trained]
        own = [quantizer for quantizer in quantizers(model) if quantizer.bit_state is state]
        seen = [quantizer for quantizer in own if quantizer.missing != set(trained)] or own
        for quantizer in seen:
            quantizer.check_initialised(trained)
        added = [(quantizer, b) for quantizer in own  # those of layers that are never called too: all stay alike
                 for b in quantizer.add(new)]
        state.trained = tuple(sorted({*trained, *new}, reverse=True))
        for quantizer, b in added:
            _interpolate(quantizer, b, trained)
        for quantizer in own:
            quantizer.look_again()  # at new scales, and at positions among the trained bit-widths that have changed
        for module in model.modules():
            if isinstance(module, BitBatchNorm) and module.bit_state is state:
                for b in new:
                    module.add(b, near=_nearest(b, trained)[0])
        norms = [module for module in model.modules() if isinstance(module, BitBatchNorm)]
        if norms and new and not batches:
            raise ValueError("add_bits: batches must hold images for the statistics of BatchNorm, got none")
        with without_layer_bits(model):  # or the statistics would be those of other bit-widths
            for b in new:
                with in_mode(model, training=False):
                    set_bits(model, b)
                    in_use = [norm for module in norms for norm in batch_norms(module.in_use())]
                estimate_statistics(model, b, batches, in_use)
    return model


def _interpolate(quantizer, b: int, trained) -> None:
    near = _nearest(b, trained)
    lower, upper = min(near), max(near)
    share = 0.0 if lower == upper else (b - lower) / (upper - lower)

    def hi(bits):
        return code_range(bits, quantizer.signed)[1]

    low, high = (quantizer.scale(n) * hi(n) for n in (lower, upper))
    offset = None
    if quantizer.offsets is not None:
        offset = torch.lerp(*(quantizer.offsets[str(n)] for n in (lower, upper)), share)
    quantizer.start(b, torch.lerp(low, high, share) / hi(b), offset)


def _nearest(b: int, trained) -> list[int]:
    """Return the trained bit-widths around b, the nearest first (the higher where they are equally near)."""
    below, above = [t for t in trained if t < b], [t for t in trained if t > b]
    return sorted([*([max(below)] if below else []), *([min(above)] if above else [])], key=lambda t: (abs(t - b), -t))
