"""fake_quantize_dynamic: fake-quantization whose range is that of the row or group itself, in the same pass."""

import math

import torch

from .. import _checks as check
from .._library import define
from ._affine import check_range
from ._function import BackwardFunction, apply

NAME = "fake_quantize_dynamic"


def _forward_shape(x, quant_min, quant_max, symmetric, eps):
    scale = x.new_empty(x.shape[0], dtype=check.arithmetic_dtype(x))
    return x.new_empty(x.shape), scale, torch.empty_like(scale)


def _backward_shape(grad, x, scale, zero_point, quant_min, quant_max, product):
    return x.new_empty(x.shape)


# x is (rows, size), size >= 1; results are contiguous.
_forward = define(NAME, "fake_quantize_dynamic_forward",
                  "(Tensor x, SymInt quant_min, SymInt quant_max, bool symmetric, float eps) "
                  "-> (Tensor, Tensor, Tensor)", _forward_shape)
_backward = define(NAME, "fake_quantize_dynamic_backward",
                   "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, SymInt quant_min, SymInt quant_max, "
                   "bool product) -> Tensor", _backward_shape)


class FakeQuantizeDynamicBackward(BackwardFunction):
    @staticmethod
    def forward(grad, x, scale, zero_point, options):
        quant_min, quant_max, _, _, product = options
        return _backward(grad, x, scale, zero_point, quant_min, quant_max, product)


class FakeQuantizeDynamic(torch.autograd.Function):
    """Options are (quant_min, quant_max, symmetric, eps, product)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, options):
        return _forward(x, *options[:-1])

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.options = inputs
        _, scale, zero_point = output
        ctx.mark_non_differentiable(scale, zero_point)
        ctx.save_for_backward(x, scale, zero_point)

    @staticmethod
    def backward(ctx, grad, _, __):
        return apply(FakeQuantizeDynamicBackward, grad, *ctx.saved_tensors, ctx.options), None


def fake_quantize_dynamic(x, *, quant_min, quant_max, symmetric=False, group_size=None, eps=None, grad_product=False):
    """Fake-quantize every row of the last axis, or every group in it, with the range that it has itself.

    asymmetric: least = min(x, 0), greatest = max(x, 0), scale = max((greatest - least) / (quant_max - quant_min), eps),
        zp = clamp(quant_min - rint(least / scale), quant_min, quant_max)
    symmetric: scale = max(max(abs(x)) / ((quant_max - quant_min) / 2), eps), zp = int((quant_max + quant_min + 1) / 2)
    code = clamp(rint(x * (1/scale)) + zp, quant_min, quant_max);  x_hat = (code - zp) * scale

    Args:
        x: (..., K), K >= 1, any strides, float32, bfloat16, float16 (float64 on CPU) - what to quantize.
        quant_min, quant_max: lowest and highest code, quant_min < quant_max, both within +-2^20.
        symmetric: the range lies evenly around 0 [default False].
        group_size: gives as many elements of the last axis, which it divides, a range of their own; None: a row has
            one (per token; per output channel of a linear weight).
        eps: least scale, > 0, rounded to x's dtype; None is that dtype's smallest normal number.
        grad_product: the gradient of x is RN(RN(grad * scale) * (1/scale)), as autograd of torchao's expression has
            it, and not grad [default False].

    Returns:
        (x_hat, scale, zero_point): x_hat has x's shape and dtype and is contiguous; the other two have shape
        x.shape[:-1], with groups (..., K / group_size), and are float32 (float64 where x is).

    The range is computed in x's dtype, every step rounded to it, the rest in float32 and rounded once: bit for bit
    what torchao 0.18's choose_qparams_affine with a float32 scale, then _fake_quantize_affine, give on a CPU: those of
    IntxFakeQuantizer per token, and symmetric per channel and per group. (On CUDA PyTorch multiplies by the inverse of
    quant_max - quant_min, where this divides.) NaN or infinity in a row: x_hat of all the row is NaN, as torchao's.

    Gradient: the range is a constant, so scale and zero_point have none; x gets grad where
    quant_min <= rint(x / scale) + zp <= quant_max, else 0. With grad_product it is torchao's, bit for bit in float32;
    of 16-bit x torchao rounds the first product to x's dtype too.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: range, shape, eps, or a group_size that does not divide.
        RuntimeError: double backward.

    Equivalent to (torchao, per token, int8):
        IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False))(x)

    Reference: Jacob et al., 2018, arXiv 1712.05877, eq. 1; the range is that of torchao's choose_qparams_affine.
    """
    check.check_x(NAME, x)
    check_range(NAME, quant_min, quant_max)
    check.check_flag(NAME, "symmetric", symmetric)
    check.check_flag(NAME, "grad_product", grad_product)
    least_scale, shape = _eps(x, eps), _shape_of_rows(x, group_size)
    rows = x.reshape(math.prod(shape), x.shape[-1] if group_size is None else group_size)
    x_hat, scale, zero_point = apply(FakeQuantizeDynamic, rows,
                                     (quant_min, quant_max, symmetric, least_scale, grad_product))
    return x_hat.reshape(x.shape), scale.reshape(shape), zero_point.reshape(shape)


def _eps(x, eps) -> float:
    if eps is None:
        return torch.finfo(x.dtype).smallest_normal
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{NAME}: eps must be a number or None, got {eps!r}")
    if not 0 < eps < math.inf:
        raise ValueError(f"{NAME}: eps must be finite and > 0, got {eps}")
    return float(eps)


def _shape_of_rows(x, group_size) -> tuple[int, ...]:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{NAME}: x must have a last axis with elements, got shape {tuple(x.shape)}")
    if group_size is None:
        return tuple(x.shape[:-1])
    if isinstance(group_size, bool) or not isinstance(group_size, (int, torch.SymInt)):
        raise TypeError(f"{NAME}: group_size must be an integer or None, got {group_size!r}")
    if group_size < 1 or x.shape[-1] % group_size:
        raise ValueError(f"{NAME}: group_size must divide the last axis of x, which has shape {tuple(x.shape)}, "
                         f"got {group_size}")
    return (*x.shape[:-1], x.shape[-1] // group_size)
