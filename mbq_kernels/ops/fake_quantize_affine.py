"""fake_quantize_affine: the arithmetic of torch.ao's, torchao's and others' fake-quantization, fused."""

import torch

from .. import _checks as check
from .._per_channel import filled
from .._scales import factor_of, grouped, matched, outside
from ._affine import NAME, FakeQuantizeAffine, affine_form, check_range
from ._function import apply

_INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64)
QUOTIENTS = ("reciprocal", "division")
ZERO_POINTS = ("integer", "before_rounding", "after_rounding")
MASKS = ("code", "position", "none")


def fake_quantize_affine(x, scale, zero_point, *, quant_min, quant_max, axis=None, grad_factor=1.0, group_size=None,
                         quotient="reciprocal", zero_point_form="integer", mask="code", grad_product=False):
    """Fake-quantize with a scale and a zero point, as torch.ao and torchao do, or as other people's code does.

    zp = clamp(rint(zero_point), quant_min, quant_max)
    code = clamp(rint(x * (1/scale)) + zp, quant_min, quant_max);  x_hat = (code - zp) * scale

    Args:
        x: any shape and strides, float32, bfloat16, float16 (float64 on CPU) - what to quantize.
        scale: one element of any shape, or with `axis` (C,) or what broadcasts along it alone, as (C, 1, 1, 1),
            floating point, or a number (a constant) - size of one step, > 0. On CPU a value that is not finite and > 0
            raises; on CUDA values are not looked at.
        zero_point: as many elements as scale, floating point (learned) or integer (constant), or a number (constant) -
            the code of real 0. An integer outside [quant_min, quant_max] raises, in a tensor on CPU alone (CUDA: it is
            clamped, as floating point is).
        quant_min, quant_max: lowest and highest code, quant_min < quant_max, both within +-2^20.
        axis: the axis of x that has C channels, negative counts from the end; None is one scale for all of x.
        grad_factor: multiplies the gradients of scale and zero_point [default 1]; "tensor" is LSQ repositories'
            1 / sqrt(x.numel() * quant_max), also with an axis.
        group_size: gives as many elements of the last axis, which it divides, a scale of their own: scale and
            zero_point of one element or of shape (..., K / group_size) for x (..., K), or (rows, K / group_size) with
            the axes before in one; axis is None.
        quotient, zero_point_form, mask, grad_product: the arithmetic of other people's code, below [torch.ao's].

    Returns:
        x_hat: x's shape and dtype, the strides of torch.empty_like(x) (contiguous with group_size).

    Gradient: x gets grad where quant_min <= rint(x / scale) + zp <= quant_max, else 0 - the mask is on the rounded
    value, where fake_quantize's is on v. scale gets grad_factor * sum(grad * ((x_hat - x) / scale inside | code - zp
    clipped)); zero_point gets grad_factor * sum(-scale * grad where clipped), through the rounding. Both have their
    parameter's shape. Deterministic.

    With an integral zero point in the range, finite x, |x / scale| < 2^31 and 1 / scale finite, the result and the
    gradient of x are those of torch.fake_quantize_per_{tensor,channel}_affine bit for bit, except of float64: of 16-bit
    x the arithmetic is float32 and the result is rounded once. torchao, Brevitas and LSQ code round every operation on
    16-bit x to its dtype, so that bits are theirs in float32 alone. Differences from torch otherwise: an integer zero
    point outside the range is clamped on CUDA (torch raises); one that is not an integer is rounded half to even both
    ways (torch: half up in one of them); NaN stays NaN (torch: code quant_min); the backward of torch's learnable form
    rounds x / scale + zp where its forward rounds x / scale, so at ties its mask and its scale gradient belong to
    another code than its result. Ours belong to the result.

    Other arithmetic, for modules that must go on computing what they do, to the last bit of x_hat and of the gradient
    of x (sums are rounded otherwise than theirs). With q the quotient and zp the zero point:
        quotient: "reciprocal" x * (1/scale) (torch.ao, torchao) | "division" x / scale (Brevitas, LSQ code).
        zero_point_form: "integer" rounded and clamped as above | "before_rounding" as it is, code = clamp(rint(q + zp))
            (Brevitas) | "after_rounding" as it is, code = clamp(rint(q) + zp) (torchao where it learns ranges). As it
            is, |zp| must be below 2^20.
        mask: what is clipped, without gradient: what lies outside [quant_min, quant_max] with its "code", before it is
            clamped (torchao, Brevitas) | with its "position", before it is rounded (LSQ code) | "none" (Brevitas'
            straight-through clamp); clamped are codes in every case.
        grad_product: the gradient of x is (grad * scale) * (1/scale), or / scale, each rounded, which is what autograd
            makes of (round(x / scale) ...) * scale, and not grad.
    Scale's gradient is then grad_factor * sum(grad * (code - zp - q where not clipped | code - zp)).

    Raises:
        TypeError: a dtype or type is wrong. ValueError: range, axis, shape, device, option, or an integer outside the
        range for zero_point. RuntimeError: on CPU, scale not finite and > 0, zero_point NaN or a tensor of integers of
        which one is outside the range; double backward.

    Equivalent to (forward; gradients except for the differences above):
        torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, quant_min, quant_max, grad_factor)

    Reference: Jacob et al., 2018, arXiv 1712.05877, eq. 1 and 12; the gradients are those of PyTorch's learnable
    fake-quantization, after Esser et al., 2020, arXiv 1902.08153, eq. 3.
    """
    check.check_x(NAME, x)
    check_range(NAME, quant_min, quant_max)
    if grad_factor is None:
        raise TypeError(f"{NAME}: grad_factor must be a number, got None")
    factor = factor_of(NAME, grad_factor, x, quant_max)
    form = _form(quotient, zero_point_form, mask, grad_product)
    rows = x
    if group_size is not None:
        rows, (scale, zero_point) = grouped(NAME, x, group_size, axis, scale=scale, zero_point=zero_point)
        axis = 0
    axis = check.check_axis(NAME, rows, axis)
    given = scale, zero_point
    scale = check.check_parameter(NAME, "scale", filled(scale, rows), rows, axis)
    zero_point = _zero_point(zero_point, rows, axis, quant_min, quant_max)
    scale, zero_point = matched(NAME, ("scale", "zero_point"), given, scale, zero_point)
    axis = None if scale.numel() == 1 else axis
    factor, scale, zero_point = outside(factor, scale, zero_point)
    out = apply(FakeQuantizeAffine, rows, scale, zero_point, (quant_min, quant_max, axis, float(factor), form))
    return out if group_size is None else out.reshape(x.shape)


def _zero_point(zero_point, x, axis, quant_min, quant_max):
    """Return it as the raw operators take it: an integer tensor as int32."""
    if isinstance(zero_point, int) and not quant_min <= zero_point <= quant_max:
        raise ValueError(f"{NAME}: zero_point must be between quant_min and quant_max, {quant_min} and {quant_max}, "
                         f"got {zero_point}")
    zero_point = filled(zero_point, x)
    if isinstance(zero_point, torch.Tensor) and zero_point.dtype in _INTEGERS:
        check.check_fit(NAME, "zero_point", zero_point, x, axis)
        return zero_point.to(torch.int32)
    return check.check_parameter(NAME, "zero_point", zero_point, x, axis)


def _form(quotient, zero_point_form, mask, grad_product) -> int:
    if (quotient, zero_point_form, mask, grad_product) == ("reciprocal", "integer", "code", False):
        return 0
    check.check_choice(NAME, "quotient", quotient, QUOTIENTS)
    check.check_choice(NAME, "zero_point_form", zero_point_form, ZERO_POINTS)
    check.check_choice(NAME, "mask", mask, MASKS)
    check.check_flag(NAME, "grad_product", grad_product)
    return affine_form(divide=quotient == "division", before=zero_point_form == "before_rounding",
                       after=zero_point_form == "after_rounding", by_position=mask == "position",
                       through=mask == "none", product=grad_product)
