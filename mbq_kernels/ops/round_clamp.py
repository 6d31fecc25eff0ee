"""round_clamp: MSQ's quantizer, whose lower bit-widths nest in its higher ones."""

import torch

from .. import _checks as check
from .._library import define
from ._function import BackwardFunction, apply

NAME = "round_clamp"


def _forward_shape(x, limit, bits, axis):
    return torch.empty_like(x)


_forward = define(NAME, "round_clamp_forward", "(Tensor x, Tensor? limit, SymInt bits, int? axis) -> Tensor",
                  _forward_shape)


class RoundClampBackward(BackwardFunction):
    @staticmethod
    def forward(grad):
        return grad.view_as(grad)


class RoundClamp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, limit, bits, axis):
        return _forward(x, limit, bits, axis)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass  # the gradient needs nothing

    @staticmethod
    def backward(ctx, grad):
        return apply(RoundClampBackward, grad), None, None, None


def round_clamp(x, *, bits, limit=None, axis=None):
    """Quantize to `bits` bits so that the bin edges of one bit less are the midpoints of every second bin.

    u = x / limit * 1/2 + 1/2 (0 has u = 1/2, also where limit is 0), or without limit u = x
    code = min(rint(2^bits u), 2^bits - 1), rint half to even
    value = limit * ((2 code - 2^bits) / top), top = 2^bits - 1, or without limit code / top

    Every operation is float32 (float64 for float64 x), rounded by itself, with IEEE division: codes are the same on
    every backend. (x / limit) / 2 is x / (2 limit), which could overflow. The bin around 0 has the value 0, exactly: with
    (2 code - top) / top, which meets limit at both ends, it has limit / top, and at 2 bits most weights get a third of
    the largest, all with one sign. So values go from -2^bits / top to (2^bits - 2) / top times limit.

    Args:
        x: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - with limit a weight in [-limit, limit],
            else u in [0, 1]. Other values and NaN raise on the CPU; on CUDA, where looking at them would stop the
            host, u is clamped to [0, 1], NaN to 0.
        bits: 1..8 - may change from call to call without a recompile.
        limit: one element of any shape, or (C,) with `axis`, floating point - largest |x|, finite and >= 0; a constant
            to autograd. An all-zero layer has limit 0, and the value 0.
        axis: the axis of x that has C channels, negative counts from the end; None is one limit for all of x.

    Returns:
        value: x's shape and dtype, the strides of torch.empty_like(x).

    Gradient: x gets grad as it is - no mask, which would freeze the top bin. limit gets none. Nothing is saved.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: bits, axis, shape or device. RuntimeError: on CPU, x outside its
        range or NaN, limit not finite and >= 0; double backward.

    Equivalent to (forward):
        code = (2**bits * (x / limit * 0.5 + 0.5)).round().clamp(max=2**bits - 1)
        limit * ((2 * code - 2**bits) / (2**bits - 1))

    Reference: Han et al., "MSQ: Memory-Efficient Bit Sparsification Quantization", 2025, arXiv 2507.22349.
    """
    check.check_x(NAME, x)
    check.check_bits(NAME, bits)
    limit, axis = check.check_limit(NAME, limit, x, axis)
    return apply(RoundClamp, x, limit, bits, axis)
