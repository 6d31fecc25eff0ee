"""fake_quantize_affine: the arithmetic of torch.ao's and torchao's integer fake-quantization, fused."""

import torch

from .. import _checks as check
from .._library import define
from ._function import BackwardFunction, apply

NAME = "fake_quantize_affine"
_LIMIT = 2**20  # rounding adds 1.5 * 2^23, exact while codes, zero points and their differences stay under 2^22


def _forward_shape(x, scale, zero_point, quant_min, quant_max, axis, form=0):
    return torch.empty_like(x)


def _backward_shape(grad, x, scale, zero_point, quant_min, quant_max, axis, grad_factor, form=0):
    return torch.empty_like(x), scale.new_empty(scale.shape), zero_point.new_empty(zero_point.shape)


_forward = define(NAME, "fake_quantize_affine_forward",
                  "(Tensor x, Tensor scale, Tensor zero_point, SymInt quant_min, SymInt quant_max, int? axis, "
                  "int form=0) -> Tensor", _forward_shape)
_backward = define(NAME, "fake_quantize_affine_backward",
                   "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, SymInt quant_min, SymInt quant_max, "
                   "int? axis, float grad_factor, int form=0) -> (Tensor, Tensor, Tensor)", _backward_shape)

QUOTIENTS = ("reciprocal", "division")
ZERO_POINTS = ("integer", "before_rounding", "after_rounding")
MASKS = ("code", "position", "none")


class FakeQuantizeAffineBackward(BackwardFunction):
    @staticmethod
    def forward(grad, x, scale, zero_point, options):
        quant_min, quant_max, axis, grad_factor, form = options
        return _backward(grad, x, scale, zero_point, quant_min, quant_max, axis, grad_factor, form)


class FakeQuantizeAffine(torch.autograd.Function):
    """Options are (quant_min, quant_max, axis, grad_factor, form)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale, zero_point, options):
        quant_min, quant_max, axis, _, form = options
        return _forward(x, scale, zero_point, quant_min, quant_max, axis, form)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:-1])
        ctx.options = inputs[-1]

    @staticmethod
    def backward(ctx, grad):
        return *apply(FakeQuantizeAffineBackward, grad, *ctx.saved_tensors, ctx.options), None


def fake_quantize_affine(x, scale, zero_point, *, quant_min, quant_max, axis=None, grad_factor=1.0,
                         quotient="reciprocal", zero_point_form="integer", mask="code", grad_product=False):
    """Fake-quantize with a scale and an integer zero point, as torch.ao and torchao do.

    zp = clamp(rint(zero_point), quant_min, quant_max)
    code = clamp(rint(x * (1/scale)) + zp, quant_min, quant_max);  x_hat = (code - zp) * scale

    Args:
        x: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - what to quantize.
        scale: one element of any shape, or (C,) with `axis`, floating point - size of one step, > 0. On CPU a value
            that is not finite and > 0 raises; on CUDA values are not looked at.
        zero_point: scale's shape, floating point (learned) or integer (constant) - the code of real 0.
        quant_min, quant_max: lowest and highest code, quant_min < quant_max, both within +-2^20.
        axis: the axis of x that has C channels, negative counts from the end; None is one scale for all of x.
        grad_factor: multiplies the gradients of scale and zero_point [default 1].
        quotient, zero_point_form, mask, grad_product: the arithmetic of other people's code, below [torch.ao's].

    Returns:
        x_hat: x's shape and dtype, the strides of torch.empty_like(x).

    Gradient: x gets grad where quant_min <= rint(x / scale) + zp <= quant_max, else 0 - the mask is on the rounded
    value, where fake_quantize's is on v. scale gets grad_factor * sum(grad * ((x_hat - x) / scale inside | code - zp
    clipped)); zero_point gets grad_factor * sum(-scale * grad where clipped), through the rounding. Deterministic.

    For finite x, |x / scale| < 2^31 and 1 / scale finite, the result and the gradient of x are those of
    torch.fake_quantize_per_{tensor,channel}_affine bit for bit. Differences from torch: a zero point that is not an
    integer is rounded half to even both ways (torch: half up in one of them); NaN stays NaN (torch: code quant_min);
    the backward of torch's learnable form rounds x / scale + zp where its forward rounds x / scale, so at ties its mask
    and its scale gradient belong to another code than its result. Ours belong to the result.

    Other arithmetic, for modules that must go on computing what they do, to the last bit of x_hat and of the gradient
    of x (sums are rounded otherwise than theirs). With q the quotient and zp the zero point:
        quotient: "reciprocal" x * (1/scale) (torch.ao, torchao) | "division" x / scale (Brevitas, LSQ code).
        zero_point_form: "integer" rounded and clamped as above | "before_rounding" as it is, code = clamp(rint(q + zp))
            (Brevitas, torch's learnable forward) | "after_rounding" as it is, code = clamp(rint(q) + zp) (torchao where
            it learns ranges). As it is, |zp| must be below 2^20.
        mask: what is clipped, without gradient: what lies outside [quant_min, quant_max] with its "code", before it is
            clamped (torchao, Brevitas) | with its "position", before it is rounded (LSQ code) | "none" (Brevitas'
            straight-through clamp); clamped are codes in every case.
        grad_product: the gradient of x is (grad * scale) * (1/scale), or / scale, each rounded, which is what autograd
            makes of (round(x / scale) ...) * scale, and not grad.
    Scale's gradient is then grad_factor * sum(grad * (code - zp - q where not clipped | code - zp)).

    Raises:
        TypeError: a dtype or type is wrong. ValueError: range, axis, shape or device. RuntimeError: on CPU, scale not
        finite and > 0, or zero_point NaN; double backward.

    Equivalent to (forward; gradients except for the differences above):
        torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, quant_min, quant_max, grad_factor)

    Reference: Jacob et al., 2018, arXiv 1712.05877, eq. 1 and 12; the gradients are those of PyTorch's learnable
    fake-quantization, after Esser et al., 2020, arXiv 1902.08153, eq. 3.
    """
    check.check_x(NAME, x)
    for name, value in (("quant_min", quant_min), ("quant_max", quant_max)):
        _check_limit(name, value)
    if quant_min >= quant_max:
        raise ValueError(f"{NAME}: quant_min must be less than quant_max, got {quant_min} and {quant_max}")
    if grad_factor is None:
        raise TypeError(f"{NAME}: grad_factor must be a number, got None")
    check.check_factor(NAME, grad_factor)
    axis = check.check_axis(NAME, x, axis)
    scale = check.check_parameter(NAME, "scale", scale, x, axis)
    if isinstance(zero_point, torch.Tensor) and zero_point.dtype in (torch.int8, torch.uint8, torch.int32, torch.int64):
        zero_point = zero_point.to(scale.dtype)
    zero_point = check.check_parameter(NAME, "zero_point", zero_point, x, axis)
    check.check_pair(NAME, ("scale", "zero_point"), scale, zero_point)
    axis = None if scale.numel() == 1 else axis
    form = _form(quotient, zero_point_form, mask, grad_product)
    return apply(FakeQuantizeAffine, x, scale, zero_point, (quant_min, quant_max, axis, float(grad_factor), form))


def _form(quotient, zero_point_form, mask, grad_product) -> int:
    """Return the bits that the raw operators take: AffineForm of csrc/math/quant_math.h, the first member lowest."""
    if (quotient, zero_point_form, mask, grad_product) == ("reciprocal", "integer", "code", False):
        return 0
    check.check_choice(NAME, "quotient", quotient, QUOTIENTS)
    check.check_choice(NAME, "zero_point_form", zero_point_form, ZERO_POINTS)
    check.check_choice(NAME, "mask", mask, MASKS)
    check.check_flag(NAME, "grad_product", grad_product)
    flags = (quotient == "division", zero_point_form == "before_rounding", zero_point_form == "after_rounding",
             mask == "position", mask == "none", grad_product)
    return sum(flag << place for place, flag in enumerate(flags))


def _check_limit(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{NAME}: {name} must be an integer, got {value!r}")
    if value < -_LIMIT or value > _LIMIT:
        raise ValueError(f"{NAME}: {name} must be between -2^20 and 2^20, got {value}")
