"""BatchNorm with statistics and an affine map of its own for every bit-width."""

import copy
import re
from collections.abc import Mapping

import torch
from torch import nn

from .bits import FLOAT, BitState
from .own_bits import OwnBits
from .recomputation import runs_at

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)  # of BatchNorm1d, 2d, 3d, SyncBatchNorm and everybody's subclasses
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
         nn.InstanceNorm3d)


class BitBatchNorm(nn.Module):
    """One BatchNorm per trained bit-width plus the float one; each forward uses that of the bit-width in use.

    The activations of a layer have another mean and variance at every bit-width; one set of running statistics fits
    none of them (Huang et al., 2025, arXiv 2502.01199, alg. A.2). Where the layer whose outputs are normalised has a
    bit-width of its own (`set_layer_bits`), it is the BatchNorm of that one, or of the nearest that was trained.
    torch.compile compiles once per bit-width,
    here as in the quantizers. Attributes that it has not are those of the BatchNorm in use.

    load_state_dict takes the keys of the BatchNorm as well, for every bit-width; what else has other bit-widths than
    this one is refused.

    Args:
        batch_norm: nn.BatchNorm1d, 2d, 3d, nn.SyncBatchNorm or a subclass, with a forward of its own or without - kept
            as it is for 32 bits, copied, with all that is in it and what is frozen, for every other bit-width.
        bit_state: the model's.
    """

    kept = "by_bits"  # the name of the ModuleDict

    def __init__(self, batch_norm: nn.Module, bit_state: BitState):
        super().__init__()
        self.bit_state = bit_state
        self.by_bits = nn.ModuleDict({str(b): copy.deepcopy(batch_norm) for b in bit_state.trained})
        self.by_bits[str(FLOAT)] = batch_norm
        self.training = batch_norm.training
        self.quantizers = ()
        self.register_load_state_dict_pre_hook(read_other_keys)

    def go_by(self, *quantizers: OwnBits | None) -> None:
        """Use the BatchNorm of the bit-widths of `quantizers`, the last of them that of the layer whose outputs are
        normalised; None stands for the model's bit-width."""
        self.quantizers = quantizers  # a tuple: they are modules of their layers, and not of this one

    def follow(self, new: Mapping[OwnBits, OwnBits]) -> None:
        """Go by new[part] in the place of each `part` of a layer that has said a bit-width so far."""
        self.quantizers = tuple(new.get(part, part) for part in self.quantizers)

    def norms(self) -> nn.ModuleDict:
        """Return the BatchNorms by what each is for."""
        return getattr(self, self.kept)

    def key(self) -> str:
        """Return what the BatchNorm in use is kept under."""
        in_use = self.bit_state.bits
        if in_use == FLOAT or not self.quantizers:
            return str(in_use)
        return ",".join(self.text_of(in_use if quantizer is None else quantizer.bits) for quantizer in self.quantizers)

    def text_of(self, bits: int) -> str:
        """Return the nearest bit-width that there is a BatchNorm of, as text; of two the higher."""
        nearest = self.bit_state.trained[0]
        for b in self.bit_state.trained:  # one by one: to torch.compile `bits` is a number that may still change
            if abs(b - bits) < abs(nearest - bits):
                nearest = b
        return str(nearest)

    def in_use(self) -> nn.Module:
        """Return the BatchNorm that a forward would use now."""
        return self.norms()[self.key()]

    def add(self, bits: int, near: int) -> None:
        """Make a BatchNorm for `bits`, as that of `near` is."""
        self.by_bits[str(bits)] = copy.deepcopy(self.by_bits[str(near)])

    def sources(self, kept: str, keys: list[str]) -> dict[str, str] | None:
        """Return, for every key, where its values are in the state of a module of another kind, with `keys` in a
        ModuleDict `kept`; without any it is a BatchNorm. None for a state that does not fit."""
        return None if keys else dict.fromkeys(self.norms(), "")

    def forward(self, *args, **kwargs):
        if not torch.compiler.is_compiling():
            runs_at(self.bit_state, type(self).__name__)
        return self.in_use()(*args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or self.kept not in self.__dict__.get("_modules", ()):
                raise
            return getattr(self.in_use(), name)

    def __repr__(self):
        inner = repr(self.norms()[str(FLOAT)]).replace("\n", "\n  ")
        each = f"bits={self.key()}, one each for {', '.join(self.norms())}"
        return f"{type(self).__name__}(\n  {each}\n  {inner}\n)"


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return every BatchNorm in `module`, itself included: a subclass may hold others."""
    return [inner for inner in module.modules() if isinstance(inner, BATCH_NORMS)]


def norms_in_use(model: nn.Module) -> list[nn.Module]:
    """Return every BatchNorm that a forward of `model` would use now: of several in one place that one."""
    idle = {norm for module in model.modules() if isinstance(module, BitBatchNorm)
            for of_others in module.norms().values() if of_others is not module.in_use()
            for norm in batch_norms(of_others)}
    return [norm for norm in batch_norms(model) if norm not in idle]


def norm_of(name: str) -> str | None:
    """Return the key of the BatchNorm that an entry of a state_dict belongs to, as '8', '8,4' or '32'; None for an
    entry that serves all bit-widths."""
    found = re.search(r"(?:^|\.)(?:by_bits|by_pair)\.([\d,]+)(?:\.|$)", name)
    return found and found[1]


def read_other_keys(module: BitBatchNorm, state_dict, prefix: str, *others) -> None:
    """Take, in the copy that load_state_dict makes, the values for every key from where `sources` says."""
    own, inside = list(module.norms()), f"{prefix}{module.kept}."
    kept, found = next(((kept, keys) for kept in ("by_bits", "by_pair")
                        if (keys := _keys_inside(state_dict, f"{prefix}{kept}."))), (module.kept, []))
    if kept == module.kept and set(found) == set(own):
        return
    sources = module.sources(kept, found)
    if sources is None:
        *_, errors = others
        errors.append(f"{type(module).__name__}: bit-widths of {prefix.rstrip('.') or 'the BatchNorm'} must be "
                      f"{', '.join(own)}, got a state with {', '.join(found)}")
        return
    given = {key[len(prefix):]: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    for key, source in sources.items():
        for name in [name for name in given if name.startswith(source)]:
            value = given[name]
            # Copies: with assign=True they become the Parameters.
            state_dict[f"{inside}{key}.{name[len(source):]}"] = (
                value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value))


def _keys_inside(state_dict, prefix: str) -> list[str]:
    """Return what follows `prefix` in the names of a state_dict, up to the next dot."""
    return [*dict.fromkeys(key[len(prefix):].partition(".")[0] for key in state_dict if key.startswith(prefix))]
