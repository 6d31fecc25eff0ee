"""BatchNorm with statistics and an affine map of its own for every bit-width."""

import copy

from torch import nn
from torch.func import functional_call

from .. import distributed
from .bits import FLOAT, BitState
from .data_parallel import averaged

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class BitBatchNorm(nn.Module):
    """One BatchNorm per trained bit-width plus the float one; each forward uses that of the bit-width in use.

    The activations of a layer have another mean and variance at every bit-width; one set of running statistics fits
    none of them (Huang et al., 2025, arXiv 2502.01199, alg. A.2). torch.compile compiles once per
    bit-width, here as in the quantizers.

    Args:
        batch_norm: nn.BatchNorm1d, 2d, 3d or nn.SyncBatchNorm - kept as it is for 32 bits, copied, with what is
            frozen in it, for every other bit-width.
        bit_state: the model's.
    """

    def __init__(self, batch_norm: nn.Module, bit_state: BitState):
        super().__init__()
        self.bit_state = bit_state
        self.by_bits = nn.ModuleDict({str(b): copy.deepcopy(batch_norm) for b in bit_state.trained})
        self.by_bits[str(FLOAT)] = batch_norm
        self.training = batch_norm.training

    def forward(self, x):
        norm = self.by_bits[str(self.bit_state.bits)]
        if distributed.world_size() == 1:
            return norm(x)
        own = {name: averaged(parameter, sharded=True) for name, parameter in norm.named_parameters()}
        return functional_call(norm, own, (x,))
