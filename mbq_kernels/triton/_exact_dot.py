"""Products of codes with floats on tensor cores: codes are exact in bfloat16 and float16, float32 is a sum of three."""

import triton
import triton.language as tl

from .quant_math import INTERPRETED


@triton.jit
def _high(x):
    """x cut off to bfloat16"""
    return (x.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def exact_dot(code, x, acc):
    """acc + code @ x, every product exact"""
    if x.dtype != tl.float32:
        acc = tl.dot(code.to(x.dtype), x, acc)
    else:
        part: tl.constexpr = tl.float32 if INTERPRETED else tl.bfloat16
        code = code.to(part)
        first = _high(x)
        rest = tl.where(first == x, 0.0, x - first)  # an infinity leaves no rest
        second = _high(rest)
        total = tl.dot(code, (rest - second).to(part), input_precision="ieee")
        total = tl.dot(code, second.to(part), total, input_precision="ieee")
        acc += tl.dot(code, first.to(part), total, input_precision="ieee")
    return acc
