"""Which bit-width a model computes at: one plain object, shared by all of its quantizers."""

import contextlib
import copy
import threading
import weakref
from itertools import pairwise

import torch
from torch import nn

from .data_parallel import follow_wrappers
from .recomputation import follow_recomputation

FLOAT = 32  # the bit-width that stands for the unquantized path
MAX_BITS = 8


class BitState:
    """Hold the bit-widths that are trained, the one in use, and what else decides a forward beside its tensors.

    A plain object and not a module: copy.deepcopy of a model gives all quantizers of the copy one new state.

    Args:
        trained: bit-widths from high to low.

    bits: the bit-width in use; index: its position in `trained` (0 at 32 bits); held: the quantized weights that a
    bank has made ready for the coming forwards, {WeightQuantizer: {bits: tensor}}; changed: whether the bit-width was
    ever changed; thread: the thread that selected it last; recompute: see `recompute_quantized`; own: the parts with a
    bit-width of their own that `set_own_bits` gave, {OwnBits: bits}.
    """

    def __new__(cls, *args):
        state = super().__new__(cls)  # copies and unpickled states too: they do not call __init__
        state.held, state.changed, state.thread, state.recompute = {}, False, threading.get_ident(), False
        state.own = weakref.WeakKeyDictionary()
        follow_recomputation(state)
        follow_wrappers()
        return state

    def __init__(self, trained):
        self.trained = tuple(trained)
        self.bits, self.index = self.trained[0], 0

    def __getstate__(self):
        return {name: getattr(self, name) for name in ("trained", "bits", "index", "changed", "recompute")}

    def select(self, bits: int) -> None:
        """Make `bits`, which is trained or 32, the bit-width in use."""
        self.changed, self.thread = self.changed or bits != self.bits, threading.get_ident()
        self.bits, self.index = bits, 0 if bits == FLOAT else self.trained.index(bits)

    def release(self) -> None:
        """Let held weights go; blocks that run again in backward keep theirs, because the dict is another one."""
        self.held = {}

    def snapshot(self) -> tuple:
        """Return what decides a forward, for `restore`."""
        return self.bits, self.index, self.held, dict(self.own)

    def restore(self, snapshot: tuple) -> None:
        """Put back what `snapshot` returned."""
        self.bits, self.index, self.held, own = snapshot
        if own or self.own:
            for part in {*own, *self.own}:
                part.keep_own_bits(own.get(part, 0))


class set_bits:
    """Make every converted layer of `model` compute at `bits` bits from now on.

    As a context manager, `with set_bits(model, 4): ...`, it puts the bit-width before the call back at the end of the
    block.

    Args:
        model: what `convert` returned, or any module that contains it.
        bits: one of the trained bit-widths, or 32 for the unquantized path.

    Raises:
        TypeError: bits is not an integer. ValueError: bits is not trained; no layer of model was converted.
    """

    def __init__(self, model: nn.Module, bits: int):
        states = converted_states("set_bits", model)
        if isinstance(bits, bool) or not isinstance(bits, int):
            raise TypeError(f"set_bits: bits must be an integer, got {bits!r}")
        for state in states:
            if bits not in (FLOAT, *state.trained):
                known = ", ".join(map(str, (FLOAT, *state.trained)))
                raise ValueError(f"set_bits: bits must be one of {known}, got {bits}")
        self._states, self._bits = states, bits
        self._select()

    def _select(self) -> None:
        self._before = [(state, state.bits) for state in self._states]
        for state in self._states:
            state.select(self._bits)

    def __enter__(self) -> None:
        if any(state.bits != self._bits for state in self._states):  # entered again, or later than it was called
            self._select()

    def __exit__(self, *error) -> None:
        for state, bits in self._before:
            state.select(bits)


def get_bits(model: nn.Module) -> int:
    """Return the bit-width at which the converted layers of `model` compute; 32 is the unquantized path.

    Raises ValueError where no layer of model was converted, and where its parts, converted by several calls of
    `convert`, are at different bit-widths.
    """
    bits = {state.bits for state in converted_states("get_bits", model)}
    if len(bits) > 1:
        raise ValueError("get_bits: model must be at one bit-width, got parts at "
                         f"{', '.join(map(str, sorted(bits, reverse=True)))} bits")
    return bits.pop()


def at_bits(model: nn.Module, bits: int) -> nn.Module:
    """Return a second view of `model` that computes at `bits` bits, whatever the bit-width of `model`.

    The view has modules of its own over the same Parameters and buffers: training one trains the other, and
    `set_bits` of one leaves the other alone, so that two threads can compute at two bit-widths. Parameters and
    buffers that one of the two replaces or registers later are shared too; modules are not.

    Args:
        model: what `convert` returned, or any module that contains it.
        bits: one of the trained bit-widths, or 32 for the unquantized path.

    Raises:
        TypeError, ValueError: as `set_bits`; a module of model holds what copy.deepcopy cannot copy.
    """
    converted_states("at_bits", model)
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        view = copy.deepcopy(model, shared)
    except (TypeError, RuntimeError) as error:
        raise TypeError("at_bits: model must hold modules that copy.deepcopy can copy, got an error "
                        f"({error})") from error
    for original, twin in zip(model.modules(), view.modules(), strict=True):
        twin._parameters, twin._buffers = original._parameters, original._buffers
    set_bits(view, bits)
    return view


def converted_states(function: str, model: nn.Module) -> list[BitState]:
    """Return the states of `model`. Raises ValueError where there are none."""
    states = bit_states(model)
    if not states:
        raise ValueError(f"{function}: model must hold layers made by convert, got {type(model).__name__} without any")
    return states


def bit_states(model: nn.Module) -> list[BitState]:
    """Return every distinct BitState in `model`: one per call of `convert`, none for a float network."""
    states = (vars(module).get("bit_state") for module in model.modules())  # getattr takes thrice the time
    return list({id(state): state for state in states if isinstance(state, BitState)}.values())


def switch_bits_of(model: nn.Module, bits: int) -> None:
    """Call set_bits, but leave a float network as it is at 32 bits: that is its own path."""
    if bits != FLOAT or bit_states(model):
        set_bits(model, bits)


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool):
    """Keep `model` in training or eval mode inside the block; afterwards every module's mode and the bit-width are as
    before."""
    modes = [(module, module.training) for module in model.modules()]
    bits = [(state, state.bits, state.changed) for state in bit_states(model)]
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before
        for state, before, changed in bits:
            state.select(before)
            state.changed = changed


def same_random_numbers(model: nn.Module):
    """Return a context after which torch's random numbers are as before, on the CPU and the devices of `model`."""
    devices = {parameter.device for parameter in model.parameters()}
    return torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"])


def quantized(bits) -> tuple[int, ...]:
    """Return `bits` without that of the float path."""
    return tuple(b for b in bits if b != FLOAT)


def check_bit_widths(function: str, bits, *, float_path: bool = False) -> tuple[int, ...]:
    """Return `bits` as a tuple, once it is a sequence of different integers in 1..8 from high to low; with `float_path`
    32 may be the first."""
    if isinstance(bits, (str, int)) or not hasattr(bits, "__iter__"):
        raise TypeError(f"{function}: bits must be a sequence of integers, got {bits!r}")
    bits, or_float = tuple(bits), f", or {FLOAT}" if float_path else ""
    for b in bits:
        if isinstance(b, bool) or not isinstance(b, int):
            raise TypeError(f"{function}: bits must be integers, got {b!r}")
        if not 1 <= b <= MAX_BITS and not (float_path and b == FLOAT):
            raise ValueError(f"{function}: bits must be between 1 and {MAX_BITS}{or_float}, got {b}")
    if not bits or any(high <= low for high, low in pairwise(bits)):
        raise ValueError(f"{function}: bits must go from high to low without repeats, got {bits}")
    return bits


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and highest code: [-2^(b-1), 2^(b-1) - 1] signed, {-1, +1} signed at 1 bit, [0, 2^b - 1]
    unsigned."""
    if not signed:
        return 0, 2**bits - 1
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
