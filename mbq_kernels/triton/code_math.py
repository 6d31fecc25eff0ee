"""The integer arithmetic on words of eight codes in Triton. Its twins: math/code_math.h and reference/code_math.py."""

import triton
import triton.language as tl

from .quant_math import clamp


@triton.jit
def every_byte(value: tl.constexpr):
    """Eight bytes in a word, `value` in each"""
    return tl.full([], 0x0101010101010101 * value, tl.uint64)


@triton.jit
def to_fields(codes, BITS: tl.constexpr, SIGNED: tl.constexpr):
    """What is stored of eight codes, one a byte: the low bits; at signed 1 bit (code + 1) / 2"""
    if SIGNED and BITS == 1:
        codes = (codes >> 7) ^ every_byte(1)
    return codes & every_byte(2**BITS - 1)


@triton.jit
def from_fields(fields, BITS: tl.constexpr, SIGNED: tl.constexpr):
    """Its inverse: (field ^ s) - s, s the sign bit; at 1 bit 2 field - 1; a byte's top bit keeps it from borrowing"""
    if not SIGNED:
        return fields
    sign = every_byte(2 ** (BITS - 1))
    raised = (fields << 1 if BITS == 1 else fields ^ sign) | every_byte(128)
    return (raised - sign) ^ every_byte(128)


@triton.jit
def gather_fields(fields, BITS: tl.constexpr):
    """Fields of eight bytes side by side, the first byte's lowest: BITS bytes, BITS = 1, 2 or 4"""
    fields = (fields | fields >> (8 - BITS)) & tl.full([], 0x0001000100010001 * (4**BITS - 1), tl.uint64)
    fields = (fields | fields >> (16 - 2 * BITS)) & tl.full([], 0x0000000100000001 * (16**BITS - 1), tl.uint64)
    return (fields | fields >> (32 - 4 * BITS)) & tl.full([], 256**BITS - 1, tl.uint64)


@triton.jit
def spread_fields(packed, BITS: tl.constexpr):
    """Its inverse"""
    packed = (packed | packed << (32 - 4 * BITS)) & tl.full([], 0x0000000100000001 * (16**BITS - 1), tl.uint64)
    packed = (packed | packed << (16 - 2 * BITS)) & tl.full([], 0x0001000100010001 * (4**BITS - 1), tl.uint64)
    return (packed | packed << (8 - BITS)) & every_byte(2**BITS - 1)


@triton.jit
def transpose_bits(words):
    """Bit i of byte p becomes bit p of byte i"""
    moved = (words ^ (words >> 7)) & tl.full([], 0x00AA00AA00AA00AA, tl.uint64)
    words = words ^ moved ^ (moved << 7)
    moved = (words ^ (words >> 14)) & tl.full([], 0x0000CCCC0000CCCC, tl.uint64)
    words = words ^ moved ^ (moved << 14)
    moved = (words ^ (words >> 28)) & tl.full([], 0x00000000F0F0F0F0, tl.uint64)
    return words ^ moved ^ (moved << 28)


@triton.jit
def byte_of(words, i: tl.constexpr, SIGNED: tl.constexpr):
    """Byte i of every word as int32"""
    byte = (words >> (8 * i)).to(tl.uint8)
    return (byte.to(tl.int8, bitcast=True) if SIGNED else byte).to(tl.int32)


@triton.jit
def clamp_bytes(words, lo, hi, SIGNED: tl.constexpr):
    """Every byte within [lo, hi]"""
    result = tl.zeros_like(words)
    for i in tl.static_range(8):
        result |= (clamp(byte_of(words, i, SIGNED), lo, hi) & 255).to(tl.uint64) << (8 * i)
    return result


@triton.jit
def round_planes(planes, BITS: tl.constexpr, HALF_EVEN: tl.constexpr):
    """switch_code on a tuple of planes of bytes, the most significant first: more than BITS become BITS"""
    carry = planes[BITS]
    above = planes[BITS - 1]
    highest = planes[0] ^ 255
    for p in tl.static_range(BITS + 1, len(planes)):
        above |= planes[p]  # more than a tie, or a tie of an odd quotient
    if HALF_EVEN:
        carry &= above
    for p in tl.static_range(1, BITS):
        highest &= planes[p]
    carry &= highest ^ 255
    rounded = ()
    for i in tl.static_range(BITS):
        rounded = (planes[BITS - 1 - i] ^ carry,) + rounded
        carry &= planes[BITS - 1 - i]
    return rounded
