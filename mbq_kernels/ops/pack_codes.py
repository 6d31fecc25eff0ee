"""pack_codes and unpack_codes: 8, 4 or 2 codes a byte."""

import torch

from .. import _checks as check
from .._code_checks import check_integers, check_shape
from .._library import define

NAME = "pack_codes"
UNPACK = "unpack_codes"


def _dtype(signed):
    return torch.int8 if signed else torch.uint8


def _pack_shape(codes, bits, signed):
    return codes.new_empty((*codes.shape[:-1], (codes.shape[-1] * bits + 7) // 8), dtype=torch.uint8)


def _unpack_shape(packed, bits, signed, shape):
    return packed.new_empty(shape, dtype=_dtype(signed))


_pack = define(NAME, "pack_codes_forward", "(Tensor codes, SymInt bits, bool signed) -> Tensor", _pack_shape)
_unpack = define(NAME, "unpack_codes_forward", "(Tensor packed, SymInt bits, bool signed, SymInt[] shape) -> Tensor",
                 _unpack_shape)


def pack_codes(codes, *, bits, signed=True):
    """Pack codes of 1, 2 or 4 bits along their last axis into bytes.

    Code i of a row is in bits [i * bits % 8, i * bits % 8 + bits) of byte i * bits // 8: the first one in the low bits.
    Stored are the low bits of the code in two's complement; of signed 1 bit, (code + 1) / 2. A row is filled up to a
    whole byte with 0.

    Args:
        codes: (..., n), any strides, int8 (uint8 unsigned) - codes at `bits`. One that `bits` bits cannot hold raises
            on the CPU and is clamped on CUDA (no host synchronisation).
        bits: 1, 2 or 4; other bit-widths are stored as planes, see to_planes.
        signed: which codes.

    Returns:
        packed: (..., ceil(n bits / 8)), uint8, contiguous.

    Gradient: none, codes are integers.

    Raises:
        TypeError: codes is not an int8 (uint8) tensor. ValueError: bits, codes without an axis. RuntimeError: on the
        CPU, a code out of range.

    Equivalent to (4 bits, n even):
        (codes[..., 0::2] & 15 | (codes[..., 1::2] & 15) << 4).to(torch.uint8)
    """
    check.check_flag(NAME, "signed", signed)
    check_integers(NAME, "codes", codes, _dtype(signed))
    _check_bits(NAME, bits)
    if codes.dim() == 0:
        raise ValueError(f"{NAME}: codes must have at least one dimension, got a 0-dim tensor")
    return _pack(codes, bits, signed)


def unpack_codes(packed, *, bits, signed=True, shape):
    """Unpack what pack_codes packed.

    Args:
        packed: (..., ceil(n bits / 8)), any strides, uint8. The bits that fill up a row are not looked at.
        bits: 1, 2 or 4. signed: which codes.
        shape: (..., n) of the codes; bytes alone do not tell n.

    Returns:
        codes: `shape`, int8 (uint8 unsigned), contiguous.

    Gradient: none, codes are integers.

    Raises:
        TypeError: packed is not a uint8 tensor, shape not a sequence of integers. ValueError: bits, a shape that does
        not fit packed.

    Equivalent to (4 bits, unsigned, n even):
        torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    """
    check.check_flag(UNPACK, "signed", signed)
    check_integers(UNPACK, "packed", packed, torch.uint8)
    _check_bits(UNPACK, bits)
    shape = check_shape(UNPACK, shape)
    wanted = (*shape[:-1], (shape[-1] * bits + 7) // 8)
    if tuple(packed.shape) != wanted:
        raise ValueError(f"{UNPACK}: packed must have shape {wanted} for codes of shape {tuple(shape)} at {bits} bits, "
                         f"got {tuple(packed.shape)}")
    return _unpack(packed, bits, signed, shape)


def _check_bits(name, bits):
    check.check_bits(name, bits)
    if bits not in (1, 2, 4):
        raise ValueError(f"{name}: bits must be 1, 2 or 4 (others as planes, see to_planes), got {bits}")
