"""Which bit-width a model computes at: one plain object, shared by all of its quantizers."""

import contextlib

import torch
from torch import nn

FLOAT = 32  # the bit-width that stands for the unquantized path
MAX_BITS = 8


class BitState:
    """The bit-widths that are trained, the one in use, and its index among them (0 at 32 bits).

    A plain object and not a module: copy.deepcopy of a model gives all quantizers of the copy one new state.
    """

    def __init__(self, trained):
        self.trained = tuple(trained)
        self.select(self.trained[0])

    def select(self, bits: int) -> None:
        """Make `bits`, which is trained or 32, the bit-width in use."""
        self.bits, self.index = bits, 0 if bits == FLOAT else self.trained.index(bits)


def set_bits(model: nn.Module, bits: int) -> None:
    """Make every converted layer of `model` compute at `bits` bits from now on.

    Args:
        model: what `convert` returned, or any module that contains it.
        bits: one of the trained bit-widths, or 32 for the unquantized path.

    Raises:
        TypeError: bits is not an integer. ValueError: bits is not trained; no layer of model was converted.
    """
    states = bit_states(model)
    if not states:
        raise ValueError(f"set_bits: model must hold layers made by convert, got {type(model).__name__} without any")
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"set_bits: bits must be an integer, got {bits!r}")
    for state in states:
        if bits not in (FLOAT, *state.trained):
            known = ", ".join(map(str, (FLOAT, *state.trained)))
            raise ValueError(f"set_bits: bits must be one of {known}, got {bits}")
    for state in states:
        state.select(bits)


def bit_states(model: nn.Module) -> list[BitState]:
    """Every distinct BitState in `model`: one per call of `convert`, none for a float network."""
    states = (getattr(module, "bit_state", None) for module in model.modules())
    return list({id(state): state for state in states if isinstance(state, BitState)}.values())


def switch_bits_of(model: nn.Module, bits: int) -> None:
    """set_bits, but a float network is its own 32-bit path."""
    if bits != FLOAT or bit_states(model):
        set_bits(model, bits)


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool):
    """`model` in training or eval mode inside the block; afterwards every module's mode and the bit-width are as
    before."""
    modes = [(module, module.training) for module in model.modules()]
    bits = [(state, state.bits) for state in bit_states(model)]
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before
        for state, before in bits:
            state.select(before)


def same_random_numbers(model: nn.Module):
    """A context after which torch's random numbers are as before, on the CPU and the devices of `model`."""
    devices = {parameter.device for parameter in model.parameters()}
    return torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"])


def quantized(bits) -> tuple[int, ...]:
    """`bits` without that of the float path."""
    return tuple(b for b in bits if b != FLOAT)


def check_bit_widths(function: str, bits, *, float_path: bool = False) -> tuple[int, ...]:
    """`bits` as a tuple, once it is a sequence of different integers in 1..8 from high to low; with `float_path` 32 may
    be the first."""
    if isinstance(bits, (str, int)) or not hasattr(bits, "__iter__"):
        raise TypeError(f"{function}: bits must be a sequence of integers, got {bits!r}")
    bits, or_float = tuple(bits), f", or {FLOAT}" if float_path else ""
    for b in bits:
        if isinstance(b, bool) or not isinstance(b, int):
            raise TypeError(f"{function}: bits must be integers, got {b!r}")
        if not 1 <= b <= MAX_BITS and not (float_path and b == FLOAT):
            raise ValueError(f"{function}: bits must be between 1 and {MAX_BITS}{or_float}, got {b}")
    if not bits or any(high <= low for high, low in zip(bits, bits[1:])):
        raise ValueError(f"{function}: bits must go from high to low without repeats, got {bits}")
    return bits


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code: [-2^(b-1), 2^(b-1) - 1] signed, {-1, +1} signed at 1 bit, [0, 2^b - 1] unsigned."""
    if not signed:
        return 0, 2**bits - 1
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
