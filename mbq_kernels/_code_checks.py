"""Checks of codes: what holds them, their shape, and the bit-widths they are switched between."""

import torch

from ._checks import check_bits


def check_integers(op: str, name: str, tensor, dtype: torch.dtype) -> None:
    """Check that `tensor` holds codes, or what they are packed into."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype}, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {tensor.layout}")


def check_switch(op: str, names: tuple[str, str], from_bits, to_bits) -> None:
    """Refuse 1 bit, which has no code for 0, so that nothing can be switched to or from it."""
    for name, bits in zip(names, (from_bits, to_bits), strict=True):
        check_bits(op, bits, 2, name)
    if to_bits > from_bits:
        raise ValueError(f"{op}: {names[1]} must be at most {names[0]}, {from_bits}, got {to_bits}")


def check_shape(op: str, shape) -> list[int]:
    """Return the shape of codes, with a last axis."""
    if not isinstance(shape, (list, tuple)) or not all(isinstance(n, (int, torch.SymInt)) for n in shape):
        raise TypeError(f"{op}: shape must be a sequence of integers, got {shape!r}")
    if not shape or any(n < 0 for n in shape):
        raise ValueError(f"{op}: shape must have at least one dimension and none below 0, got {tuple(shape)}")
    return list(shape)
