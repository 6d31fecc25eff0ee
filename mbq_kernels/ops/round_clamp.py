"""round_clamp: MSQ's quantizer, whose lower bit-widths nest in its higher ones."""

import torch

from .. import _checks as check
from .._library import define
from ._function import BackwardFunction, apply

NAME = "round_clamp"


def _forward_shape(x, limit, bits, axis, sign_magnitude):
    return torch.empty_like(x)


_forward = define(NAME, "round_clamp_forward",
                  "(Tensor x, Tensor? limit, SymInt bits, int? axis, bool sign_magnitude) -> Tensor", _forward_shape)


class RoundClampBackward(BackwardFunction):
    @staticmethod
    def forward(grad):
        return grad.view_as(grad)


class RoundClamp(torch.autograd.Function):
    """Options are (bits, axis, sign_magnitude)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, limit, options):
        bits, axis, sign_magnitude = options
        return _forward(x, limit, bits, axis, sign_magnitude)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass  # the gradient needs nothing

    @staticmethod
    def backward(ctx, grad):
        return apply(RoundClampBackward, grad), None, None


def round_clamp(x, *, bits, limit=None, axis=None, form="offset"):
    """Quantize to `bits` bits so that the bin edges of one bit less are the midpoints of every second bin.

    code = min(rint(2^bits u), 2^bits - 1), rint half to even; u and the value of a code in the two forms:
    offset: u = x / limit * 1/2 + 1/2 (0 has u = 1/2, also where limit is 0), value = (code - 2^(bits - 1)) * scale,
    scale = limit * 2^(1 - bits). Values lie in [-limit, limit), 0 stays 0, and those of codes whose last bit is 0 stay
    when the bit goes. Without limit u = x, value = code * 2^-bits.
    sign-magnitude: u = |x| / limit (0 where x is 0), value = sign(x) code * scale, scale = limit / (2^bits - 1):
    `bits` bits of magnitude beside a sign, 1 bit is ternary; values of codes whose last bit is 0 grow by the factor
    (2^bits - 1) / (2^bits - 2) when the bit goes. Without limit u = x, value = code * scale, scale = 1 / (2^bits - 1).

    Every operation is float32 (float64 for float64 x), rounded by itself, with IEEE division: codes and values are the
    same on every backend, and a value is what a store or an ONNX file computes from its signed code and scale, bit for
    bit. (x / limit) / 2 is x / (2 limit), which could overflow. The form with a divisor 2^bits - 1 and an offset,
    limit (2 code - 2^bits) / (2^bits - 1), has a gain: at 1 bit its values are -2 limit and 0.

    Args:
        x: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - with limit a weight in [-limit, limit],
            else u in [0, 1]. Other values and NaN raise on the CPU; on CUDA, where looking at them would stop the
            host, u is clamped to [0, 1], NaN to 0.
        bits: 1..8 - may change from call to call without a recompile.
        limit: one element of any shape, or (C,) with `axis`, floating point - largest |x|, finite and >= 0; a constant
            to autograd. An all-zero layer has limit 0, and the value 0.
        axis: the axis of x that has C channels, negative counts from the end; None is one limit for all of x.
        form: 'offset' or 'sign-magnitude'.

    Returns:
        value: x's shape and dtype, the strides of torch.empty_like(x).

    Gradient: x gets grad as it is in both forms - no mask, which would freeze the top bin. limit gets none. Nothing is
    saved.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: bits, axis, form, shape or device. RuntimeError: on CPU, x
        outside its range or NaN, limit not finite and >= 0; double backward.

    Equivalent to (forward), with u as above:
        code = (2**bits * u).round().clamp(max=2**bits - 1)
        (code - 2 ** (bits - 1)) * (limit * 2.0 ** (1 - bits)) or x.sign() * code * (limit / (2**bits - 1))

    Reference: Han et al., "MSQ: Memory-Efficient Bit Sparsification Quantization", 2025, arXiv 2507.22349.
    """
    check.check_x(NAME, x)
    check.check_bits(NAME, bits)
    sign_magnitude = check.check_form(NAME, form)
    limit, axis = check.check_limit(NAME, limit, x, axis)
    return apply(RoundClamp, x, limit, (bits, axis, sign_magnitude))
