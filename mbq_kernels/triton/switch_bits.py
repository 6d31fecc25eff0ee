"""switch_bits in Triton."""

import torch
import triton
import triton.language as tl

from ..reference.quant_math import bounds, switching
from ._elementwise import OPTIONS, TILE, dense
from .quant_math import clamp, switch_code

CODES = 2 * TILE  # of a program: 16 a thread


@triton.jit
def switch_bits_kernel(codes_ptr, out_ptr, count, from_lo, from_hi, switch, CODES: tl.constexpr):
    """out = clamp(round(code / 2^shift), lo, hi)"""
    offsets = tl.program_id(0).to(tl.int64) * CODES + tl.arange(0, CODES)
    mask = offsets < count
    code = clamp(tl.load(codes_ptr + offsets, mask=mask, other=0).to(tl.int32), from_lo, from_hi)
    tl.store(out_ptr + offsets, switch_code(code, switch).to(tl.int8), mask=mask)


def switch_bits_forward(codes, from_bits, to_bits, half_even):
    codes = dense(codes)
    out, count = torch.empty_like(codes), codes.numel()
    if count:
        switch = switching(from_bits, to_bits, half_even)
        from_lo, from_hi = (int(bound) for bound in bounds(from_bits, True))
        with torch.cuda.device_of(codes):
            switch_bits_kernel[(triton.cdiv(count, CODES),)](
                codes_ptr=codes, out_ptr=out, count=count, from_lo=from_lo, from_hi=from_hi, switch=switch,
                CODES=CODES, **OPTIONS)
    return out
