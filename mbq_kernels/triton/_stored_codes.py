"""Words of a stored weight, rounded again as a whole: four codes at once, or one bit of 32.

Twins: switch_code in csrc/math/quant_math.h and round_planes in csrc/math/code_math.h. What comes out are levels, codes
less the lowest of their bit-width: a byte each, never negative.
"""

import triton
import triton.language as tl


@triton.jit
def float_of(levels, byte: tl.constexpr, BITS: tl.constexpr):
    """Code number `byte` of every word of levels, in float32: the byte becomes the end of 2^23's mantissa"""
    return (((levels >> (8 * byte)) & 0xFF) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608 + 2 ** (BITS - 1))


@triton.jit
def levels_of_codes(word, HIGH_BITS: tl.constexpr, BITS: tl.constexpr, HALF_UP: tl.constexpr):
    """word: uint32, four codes in two's complement, clamped to HIGH_BITS"""
    DROP: tl.constexpr = HIGH_BITS - BITS
    TOP: tl.constexpr = 2 ** (HIGH_BITS - 1)
    if HIGH_BITS == 8:
        level = word ^ 0x80808080
    else:
        level = word ^ word
        for byte in tl.static_range(4):
            code = (word << (24 - 8 * byte)).to(tl.int32, bitcast=True) >> 24
            code = tl.minimum(tl.maximum(code, -TOP), TOP - 1) + TOP
            level |= code.to(tl.uint32, bitcast=True) << (8 * byte)
    if DROP > 0:
        REST: tl.constexpr = 0x01010101 * (2 ** (DROP - 1) - 1)  # below the half
        whole = (level >> DROP) & (0x01010101 * (0xFF >> DROP))
        up = (level >> (DROP - 1)) & 0x01010101
        if not HALF_UP:
            up &= (((level & REST) + REST) >> (DROP - 1)) | whole
        level = whole + up
        level -= (level >> BITS) & 0x01010101  # hi + 1 back to hi
    return level


@triton.jit
def _swap(a, b, BY: tl.constexpr, MASK: tl.constexpr):
    """Exchange the bits of a that lie BY above MASK with those of b in MASK"""
    differ = ((a >> BY) ^ b) & MASK
    return a ^ (differ << BY), b ^ differ


@triton.jit
def transpose(w0, w1, w2, w3, w4, w5, w6, w7):
    """Bit j of every byte of word i becomes bit i of that byte of word j"""
    w0, w4 = _swap(w0, w4, 4, 0x0F0F0F0F)
    w1, w5 = _swap(w1, w5, 4, 0x0F0F0F0F)
    w2, w6 = _swap(w2, w6, 4, 0x0F0F0F0F)
    w3, w7 = _swap(w3, w7, 4, 0x0F0F0F0F)
    w0, w2 = _swap(w0, w2, 2, 0x33333333)
    w1, w3 = _swap(w1, w3, 2, 0x33333333)
    w4, w6 = _swap(w4, w6, 2, 0x33333333)
    w5, w7 = _swap(w5, w7, 2, 0x33333333)
    w0, w1 = _swap(w0, w1, 1, 0x55555555)
    w2, w3 = _swap(w2, w3, 1, 0x55555555)
    w4, w5 = _swap(w4, w5, 1, 0x55555555)
    w6, w7 = _swap(w6, w7, 1, 0x55555555)
    return w0, w1, w2, w3, w4, w5, w6, w7


@triton.jit
def levels_of_planes(planes, BITS: tl.constexpr, HALF_UP: tl.constexpr):
    """planes: a tuple of uint32 words, the sign first; word j of the result has columns j, 8 + j, ... of every word"""
    sign = planes[0]
    zero = sign ^ sign
    carry = zero
    if len(planes) > BITS:
        carry = planes[BITS]
        if not HALF_UP:
            some = planes[BITS - 1]
            for p in tl.static_range(BITS + 1, len(planes)):
                some |= planes[p]
            carry &= some
    low = ()  # from the last plane that is kept to the sign
    for i in tl.static_range(BITS):
        plane = planes[BITS - 1 - i]
        low = low + (plane ^ carry,)
        carry = carry & plane
    over = low[BITS - 1] & (sign ^ 0xFFFFFFFF)  # hi + 1, which looks like lo: back to hi
    kept = ()
    for i in tl.static_range(8):
        if i < BITS - 1:
            kept = kept + (low[i] | over,)
        elif i == BITS - 1:
            kept = kept + ((low[i] ^ over) ^ 0xFFFFFFFF,)  # not the sign, but what is above the lowest code
        else:
            kept = kept + (zero,)
    return transpose(kept[0], kept[1], kept[2], kept[3], kept[4], kept[5], kept[6], kept[7])


@triton.jit
def codes_at(store_ptr, n, k, mask, outputs, row_bytes, PLANES: tl.constexpr, HIGH_BITS: tl.constexpr,
             BITS: tl.constexpr, HALF_UP: tl.constexpr):
    """Single codes (n, k) in float32, for where the words' speed is not needed; PLANES 0: int8 codes"""
    n = n.to(tl.int64)[:, None]
    k = k[None, :]
    if PLANES == 0:
        code = tl.load(store_ptr + n * row_bytes + k, mask=mask, other=0).to(tl.int32)
        code = tl.minimum(tl.maximum(code, -(2 ** (HIGH_BITS - 1))), 2 ** (HIGH_BITS - 1) - 1)
    else:
        for p in tl.static_range(PLANES):
            byte = tl.load(store_ptr + (n + p * tl.cast(outputs, tl.int64)) * row_bytes + k // 8, mask=mask, other=0)
            bit = (byte.to(tl.int32) >> (k % 8)) & 1
            code = -bit if p == 0 else code * 2 + bit
    DROP: tl.constexpr = (PLANES if PLANES > 0 else HIGH_BITS) - BITS
    if DROP > 0:
        even = 0 if HALF_UP else 1
        code = (code + 2 ** (DROP - 1) - even + ((code >> DROP) & even)) >> DROP
        code = tl.minimum(code, 2 ** (BITS - 1) - 1)
    return code.to(tl.float32)
