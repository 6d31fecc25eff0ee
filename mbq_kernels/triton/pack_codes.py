"""pack_codes and unpack_codes in Triton: eight codes are a word, and become a word of `bits` bytes."""

import torch
import triton
import triton.language as tl

from ..reference.quant_math import bounds
from ._bytes import from_words, launch, to_words, word_offsets
from .code_math import clamp_bytes, from_fields, gather_fields, spread_fields, to_fields

PACKED = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # what eight codes are packed into, by their bits


@triton.jit
def pack_codes_kernel(codes_ptr, packed_ptr, count, lo, hi, BITS: tl.constexpr, SIGNED: tl.constexpr,
                      WORDS: tl.constexpr):
    """packed word = the low BITS bits of eight codes, side by side"""
    offsets, mask = word_offsets(count, WORDS)
    codes = tl.load(codes_ptr + offsets, mask=mask, other=0).to(tl.uint64, bitcast=True)
    if not (SIGNED and BITS == 1):  # there the sign alone counts
        codes = clamp_bytes(codes, lo, hi, SIGNED)
    packed = gather_fields(to_fields(codes, BITS, SIGNED), BITS)
    tl.store(packed_ptr + offsets, packed.to(packed_ptr.dtype.element_ty), mask=mask)


@triton.jit
def unpack_codes_kernel(packed_ptr, codes_ptr, count, BITS: tl.constexpr, SIGNED: tl.constexpr, WORDS: tl.constexpr):
    """eight codes = the fields of BITS bits of a packed word"""
    offsets, mask = word_offsets(count, WORDS)
    packed = tl.load(packed_ptr + offsets, mask=mask, other=0).to(tl.uint64)
    codes = from_fields(spread_fields(packed & (256**BITS - 1), BITS), BITS, SIGNED)
    tl.store(codes_ptr + offsets, codes.to(tl.int64, bitcast=True), mask=mask)


def pack_codes_forward(codes, bits, signed):
    lo, hi = (int(bound) for bound in bounds(bits, signed))
    words = to_words(codes, torch.int64, fill=lo if lo == -hi else 0)  # whose fields are 0
    packed = codes.new_empty(words.shape, dtype=PACKED[bits])
    launch(pack_codes_kernel, codes, words.numel(), codes_ptr=words, packed_ptr=packed, lo=lo, hi=hi, BITS=bits,
           SIGNED=signed)
    return from_words(packed, torch.uint8, (*codes.shape[:-1], (codes.shape[-1] * bits + 7) // 8))


def unpack_codes_forward(packed, bits, signed, shape):
    words = to_words(packed, PACKED[bits])
    codes = packed.new_empty(words.shape, dtype=torch.int64)
    launch(unpack_codes_kernel, packed, words.numel(), packed_ptr=words, codes_ptr=codes, BITS=bits, SIGNED=signed)
    return from_words(codes, torch.int8 if signed else torch.uint8, shape)
