"""BatchNorm with statistics and an affine map of its own for every bit-width."""

import copy

import torch
from torch import nn

from .bits import FLOAT, BitState
from .recomputation import runs_at

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)  # of BatchNorm1d, 2d, 3d, SyncBatchNorm and everybody's subclasses
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
         nn.InstanceNorm3d)


class BitBatchNorm(nn.Module):
    """One BatchNorm per trained bit-width plus the float one; each forward uses that of the bit-width in use.

    The activations of a layer have another mean and variance at every bit-width; one set of running statistics fits
    none of them (Huang et al., 2025, arXiv 2502.01199, alg. A.2). torch.compile compiles once per
    bit-width, here as in the quantizers. Attributes that it has not are those of the BatchNorm in use.

    load_state_dict takes the keys of the BatchNorm as well, for every bit-width; what else has other bit-widths than
    this one is refused.

    Args:
        batch_norm: nn.BatchNorm1d, 2d, 3d, nn.SyncBatchNorm or a subclass, with a forward of its own or without - kept
            as it is for 32 bits, copied, with all that is in it and what is frozen, for every other bit-width.
        bit_state: the model's.
    """

    def __init__(self, batch_norm: nn.Module, bit_state: BitState):
        super().__init__()
        self.bit_state = bit_state
        self.by_bits = nn.ModuleDict({str(b): copy.deepcopy(batch_norm) for b in bit_state.trained})
        self.by_bits[str(FLOAT)] = batch_norm
        self.training = batch_norm.training
        self.register_load_state_dict_pre_hook(_read_float_keys)

    def forward(self, *args, **kwargs):
        if not torch.compiler.is_compiling():
            runs_at(self.bit_state, "BitBatchNorm")
        return self.by_bits[str(self.bit_state.bits)](*args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "by_bits" or "by_bits" not in self.__dict__.get("_modules", ()):
                raise
            return getattr(self.by_bits[str(self.bit_state.bits)], name)

    def __repr__(self):
        inner = repr(self.by_bits[str(FLOAT)]).replace("\n", "\n  ")
        return f"BitBatchNorm(\n  bits={self.bit_state.bits}, one each for {', '.join(self.by_bits)}\n  {inner}\n)"


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return every BatchNorm in `module`, itself included: a subclass may hold others."""
    return [inner for inner in module.modules() if isinstance(inner, BATCH_NORMS)]


def _read_float_keys(module: BitBatchNorm, state_dict, prefix: str, *others) -> None:
    """Give, in the copy that load_state_dict makes, the values of a float BatchNorm to every bit-width."""
    own, inside = list(module.by_bits), f"{prefix}by_bits."
    found = dict.fromkeys(key[len(inside):].partition(".")[0] for key in state_dict if key.startswith(inside))
    if found and found.keys() != set(own):
        *_, errors = others
        errors.append(f"BitBatchNorm: bit-widths of {prefix.rstrip('.') or 'the BatchNorm'} must be "
                      f"{', '.join(own)}, got a state with {', '.join(found)}")
    if found:
        return
    for key in [key for key in state_dict if key.startswith(prefix)]:
        value = state_dict.pop(key)
        for b in own:  # copies: with assign=True they become the Parameters
            state_dict[f"{inside}{b}.{key[len(prefix):]}"] = (
                value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value))
