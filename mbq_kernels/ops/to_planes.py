"""to_planes and from_planes: codes as bit planes, of which a lower bit-width reads only the first."""

import torch

from .. import _checks as check
from .._code_checks import check_integers, check_shape, check_switch
from .._library import define

NAME = "to_planes"
FROM = "from_planes"


def _to_shape(codes, bits):
    return codes.new_empty((bits, *codes.shape[:-1], (codes.shape[-1] + 7) // 8), dtype=torch.uint8)


def _from_shape(planes, high_bits, bits, half_even, shape):
    return planes.new_empty(shape, dtype=torch.int8)


_to = define(NAME, "to_planes_forward", "(Tensor codes, SymInt bits) -> Tensor", _to_shape)
_from = define(NAME, "from_planes_forward",
               "(Tensor planes, SymInt high_bits, SymInt bits, bool half_even, SymInt[] shape) -> Tensor", _from_shape)


def to_planes(codes, *, bits=8):
    """Split signed codes into bit planes, the most significant first.

    Bit i % 8 of planes[p, ..., i // 8] is bit (bits - 1 - p) of code i of a row, in two's complement; plane 0 is the
    sign. A row is filled up to a whole byte with 0.

    Args:
        codes: (..., n), any strides, int8 - codes at `bits`. One that `bits` bits cannot hold raises on the CPU and is
            clamped on CUDA (no host synchronisation).
        bits: 2..8 (1 bit: pack_codes).

    Returns:
        planes: (bits, ..., ceil(n / 8)), uint8, contiguous: a plane is one block of memory.

    Gradient: none, codes are integers.

    Raises:
        TypeError: codes is not an int8 tensor. ValueError: bits, codes without an axis. RuntimeError: on the CPU, a
        code out of range.

    Equivalent to (n a multiple of 8):
        torch.stack([pack_codes((codes >> b & 1).byte(), bits=1, signed=False) for b in reversed(range(bits))])
    """
    check_integers(NAME, "codes", codes, torch.int8)
    check.check_bits(NAME, bits, 2)
    if codes.dim() == 0:
        raise ValueError(f"{NAME}: codes must have at least one dimension, got a 0-dim tensor")
    return _to(codes, bits)


def from_planes(planes, *, high_bits=8, bits, rounding="half_up", shape):
    """Read codes at `bits` bits from the bit planes of codes at `high_bits`.

    The result is switch_bits(codes, from_bits=high_bits, to_bits=bits, rounding=rounding). With "half_up" the first
    min(bits + 1, high_bits) planes decide it, and only they are read.

    Args:
        planes: (P, ..., ceil(n / 8)), any strides, uint8 - as to_planes gives them, or the first P of them:
            min(bits + 1, high_bits) <= P <= high_bits with "half_up", P = high_bits with "half_even", where the last
            bit may decide a tie. The bits that fill up a row are not looked at.
        high_bits: 2..8 - bit-width of what was split. bits: 2..high_bits; equal: the codes as they were.
        rounding: "half_up" or "half_even".
        shape: (..., n) of the codes; bytes alone do not tell n.

    Returns:
        codes: `shape`, int8, contiguous.

    Gradient: none, codes are integers.

    Raises:
        TypeError: planes is not a uint8 tensor, shape not a sequence of integers. ValueError: bit-widths, rounding, too
        few or too many planes, a shape that does not fit them.

    Equivalent to ("half_up", bits < high_bits; top: the codes of the first bits + 1 planes):
        ((top + 1) >> 1).clamp(max=2**(bits - 1) - 1)
    """
    check_integers(FROM, "planes", planes, torch.uint8)
    check_switch(FROM, ("high_bits", "bits"), high_bits, bits)
    half_even = check.check_rounding(FROM, rounding)
    shape = check_shape(FROM, shape)
    wanted = (*shape[:-1], (shape[-1] + 7) // 8)
    if planes.dim() != len(wanted) + 1 or tuple(planes.shape[1:]) != wanted:
        raise ValueError(f"{FROM}: planes must have shape (planes, {', '.join(map(str, wanted))}) for codes of shape "
                         f"{tuple(shape)}, got {tuple(planes.shape)}")
    _check_count(planes.shape[0], high_bits, bits, half_even)
    return _from(planes, high_bits, bits, half_even, shape)


def _check_count(count, high_bits, bits, half_even):
    if count > high_bits:
        raise ValueError(f"{FROM}: planes must be at most high_bits, {high_bits}, got {count}")
    if count < high_bits and half_even:
        raise ValueError(f"{FROM}: planes must be all {high_bits} with rounding 'half_even', whose ties the last bit "
                         f"decides ('half_up' needs the first {bits + 1} alone), got {count}")
    if count < high_bits and count < bits + 1:
        raise ValueError(f"{FROM}: planes must be at least {min(bits + 1, high_bits)} for {bits} bits of {high_bits}, "
                         f"got {count}")
