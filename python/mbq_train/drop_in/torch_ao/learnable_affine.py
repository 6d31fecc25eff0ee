"""torch's learnable fake-quantization, whose forward and backward round in two ways.

Forward, the zero point z is rounded half to even and clamped, and the code is rint(x / scale) + z. Backward, the mask
and the gradients belong to the code rint(x / scale + z), and with one scale for all of x, z is rounded by adding a half
and cutting. Where z is 0 both are the same.
"""

import torch

from mbq_kernels import fake_quantize_affine

FEWEST = 16384  # elements: its backward computes the codes again, with the other rounding
SUM_BOUND = ("gradients of scale and zero point: sums in another order than torch's and of terms rounded otherwise, "
             "equal within float32's rounding of their sum of magnitudes")


def learnable_affine(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int | None, quant_min: int,
                     quant_max: int, grad_factor: float = 1.0, *, symmetric: bool = False) -> torch.Tensor:
    """Do as torch._fake_quantize_learnable_per_tensor_affine, or with `axis` per_channel; symmetric: zero_point is 0.
    """
    options = {"axis": axis, "quant_min": quant_min, "quant_max": quant_max, "grad_factor": grad_factor}
    try:
        if symmetric:
            return fake_quantize_affine(x, scale, zero_point, **options)
        return _LearnableAffine.apply(x, scale, zero_point, options)
    except (RuntimeError, ValueError):  # a value that ours refuses: torch computes with it, or refuses it too
        if axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, quant_min, quant_max,
                                                                    grad_factor)
        return torch._fake_quantize_learnable_per_channel_affine(x, scale, zero_point, axis, quant_min, quant_max,
                                                                 grad_factor)


class _LearnableAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, options):
        ctx.save_for_backward(x, scale, zero_point)
        ctx.options = options
        return fake_quantize_affine(x, scale, zero_point, **options)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, scale, zero_point = ctx.saved_tensors
        if ctx.options["axis"] is None:
            rounded = (zero_point + 0.5).clamp(ctx.options["quant_min"], ctx.options["quant_max"]).trunc()
        else:
            rounded = zero_point.round().clamp(ctx.options["quant_min"], ctx.options["quant_max"])
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in (x, scale, rounded)]
            x_hat = fake_quantize_affine(*inputs, **ctx.options, zero_point_form="before_rounding")
        return *torch.autograd.grad(x_hat, inputs, grad), None
