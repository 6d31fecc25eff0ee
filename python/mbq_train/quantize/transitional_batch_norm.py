"""BatchNorm with statistics and an affine map of its own for every pair of bit-widths of two layers in a row."""

import copy
from itertools import product

import torch
from torch import nn

from .batch_norm import BitBatchNorm, read_other_keys
from .bits import FLOAT
from .own_bits import OwnBits


class TransitionalBatchNorm(BitBatchNorm):
    """One BatchNorm for every pair (bit-width of the quantized layer before, bit-width of the layer whose outputs are
    normalised), plus the float one; each forward uses that of the two layers' bit-widths in use.

    Where layers have bit-widths of their own (`set_layer_bits`), the mean and variance of a layer's outputs depend on
    its bit-width and on that of the layer which made its inputs. Where all have the model's, b, it is the BatchNorm of
    (b, b), so that `set_bits` works as ever. torch.compile compiles once for each pair. K bit-widths have K^2
    BatchNorms: `by_pair["8,4"]` is that of 4 bits after 8, `by_pair["32"]` the float one.

    Made by convert(..., batch_norm="transitional"), or by `make_transitional` from a model that is trained.
    load_state_dict takes, for every pair, the keys of a BitBatchNorm at the bit-width of the layer, and those of a
    BatchNorm for all.

    Args:
        norm: gives each pair what it has at the layer's bit-width, (b, b) the very BatchNorm, the others copies.
        previous: what says the bit-width of the quantized layer before; None where there is none: the model's.
        layer: what says the bit-width of the layer whose outputs are normalised.

    Reference: Huang et al., "Nearly Lossless Adaptive Bit Switching", 2025, arXiv 2502.01199, A.3, after Bulat and
    Tzimiropoulos, "Bit-Mixer", 2021, arXiv 2103.17267.
    """

    kept = "by_pair"

    def __init__(self, norm: BitBatchNorm, previous: OwnBits | None, layer: OwnBits):
        nn.Module.__init__(self)
        self.bit_state = norm.bit_state
        self.go_by(previous, layer)
        by_bits = norm.by_bits
        self.by_pair = nn.ModuleDict({
            _pair(before, bits): by_bits[str(bits)] if before == bits else copy.deepcopy(by_bits[str(bits)])
            for before, bits in product(norm.bit_state.trained, repeat=2)})
        self.by_pair[str(FLOAT)] = by_bits[str(FLOAT)]
        self.training = norm.training
        self.register_load_state_dict_pre_hook(read_other_keys)

    def add(self, bits: int, near: int) -> None:
        """Make the BatchNorms of all pairs with `bits`, as those with `near` in its place are."""
        known = dict.fromkeys(int(b) for key in self.by_pair for b in key.split(",") if key != str(FLOAT))
        for before, of_layer in [*product((bits,), known), *product(known, (bits,)), (bits, bits)]:
            like = _pair(*(near if b == bits else b for b in (before, of_layer)))
            self.by_pair[_pair(before, of_layer)] = copy.deepcopy(self.by_pair[like])

    @torch.no_grad()
    def spread(self) -> None:
        """Give every pair the values of (b, b), b the bit-width of the layer, as at the begin: what training at one
        bit-width for all layers has taught carries over to mixed ones."""
        for key, norm in self.by_pair.items():
            before, _, bits = key.partition(",")
            if bits and before != bits:
                norm.load_state_dict(self.by_pair[f"{bits},{bits}"].state_dict())

    def sources(self, kept: str, keys: list[str]) -> dict[str, str] | None:
        """Return for every pair the place of the layer's bit-width in the state of a BitBatchNorm."""
        if kept == self.kept or not keys:
            return super().sources(kept, keys)
        of_layers = {pair: pair.rpartition(",")[-1] for pair in self.by_pair}
        if {*of_layers.values()} != set(keys):
            return None
        return {pair: f"{kept}.{bits}." for pair, bits in of_layers.items()}


def spread_batch_norms(model: nn.Module) -> None:
    """Call `spread` of every TransitionalBatchNorm in `model`: between a training at one bit-width for all layers and
    one with mixed bit-widths."""
    for module in model.modules():
        if isinstance(module, TransitionalBatchNorm):
            module.spread()


def _pair(before: int, bits: int) -> str:
    return f"{before},{bits}"
