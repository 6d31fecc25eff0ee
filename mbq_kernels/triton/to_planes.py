"""to_planes and from_planes in Triton: a word is eight codes, and a byte of every plane."""

import torch
import triton
import triton.language as tl

from ..reference.quant_math import bounds
from ._bytes import from_words, launch, to_words, word_offsets
from .code_math import clamp_bytes, from_fields, round_planes, transpose_bits


@triton.jit
def to_planes_kernel(codes_ptr, planes_ptr, plane_bytes, count, lo, hi, BITS: tl.constexpr, WORDS: tl.constexpr):
    """byte of plane p = bits BITS - 1 - p of eight codes"""
    offsets, mask = word_offsets(count, WORDS)
    codes = tl.load(codes_ptr + offsets, mask=mask, other=0).to(tl.uint64, bitcast=True)
    if BITS < 8:
        codes = clamp_bytes(codes, lo, hi, True)
    words = transpose_bits(codes)
    for p in tl.static_range(BITS):
        tl.store(planes_ptr + p * plane_bytes + offsets, (words >> (8 * (BITS - 1 - p))).to(tl.uint8), mask=mask)


@triton.jit
def from_planes_kernel(planes_ptr, codes_ptr, plane_bytes, count, BITS: tl.constexpr, PLANES: tl.constexpr,
                       HALF_EVEN: tl.constexpr, WORDS: tl.constexpr):
    """eight codes = byte of BITS planes, or of more that are rounded"""
    offsets, mask = word_offsets(count, WORDS)
    planes = ()
    for p in tl.static_range(PLANES):
        planes = planes + (tl.load(planes_ptr + p * plane_bytes + offsets, mask=mask, other=0),)
    if PLANES > BITS:
        planes = round_planes(planes, BITS, HALF_EVEN)
    words = tl.zeros([WORDS], tl.uint64)
    for p in tl.static_range(BITS):
        words |= planes[p].to(tl.uint64) << (8 * (BITS - 1 - p))
    codes = transpose_bits(words)
    if BITS < 8:
        codes = from_fields(codes, BITS, True)
    tl.store(codes_ptr + offsets, codes.to(tl.int64, bitcast=True), mask=mask)


def to_planes_forward(codes, bits):
    words = to_words(codes, torch.int64)
    planes = codes.new_empty((bits, *codes.shape[:-1], (codes.shape[-1] + 7) // 8), dtype=torch.uint8)
    lo, hi = (int(bound) for bound in bounds(bits, True))
    launch(to_planes_kernel, codes, words.numel(), codes_ptr=words, planes_ptr=planes, plane_bytes=words.numel(), lo=lo,
           hi=hi, BITS=bits)
    return planes


def from_planes_forward(planes, high_bits, bits, half_even, shape):
    count = high_bits if half_even else min(bits + 1, high_bits)
    planes = planes[:count].contiguous()
    codes = planes.new_empty(planes.numel() // count, dtype=torch.int64)
    launch(from_planes_kernel, planes, codes.numel(), planes_ptr=planes, codes_ptr=codes, plane_bytes=codes.numel(),
           BITS=bits, PLANES=count, HALF_EVEN=half_even)
    return from_words(codes, torch.int8, shape)
