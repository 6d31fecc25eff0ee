"""Fake-quantization with one constant scale on the CPU, whose backward is one pass without sums.

The code grows with x, so that what is not clipped is an interval of floats, and the gradient of x is that of hardtanh
between its ends, for which torch has a kernel, which can be differentiated again.
"""

import functools

import numpy as np
import torch

from mbq_kernels import fake_quantize_affine


def takes(x: torch.Tensor, axis: int | None) -> bool:
    """Return whether per_tensor is for this call."""
    return (axis is None and x.is_cpu and x.dtype == torch.float32 and x.requires_grad and torch.is_grad_enabled()
            and not torch.compiler.is_compiling())


def per_tensor(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, quant_min: int,
               quant_max: int) -> torch.Tensor:
    """Do as torch.fake_quantize_per_tensor_affine."""
    return _PerTensor.apply(x, scale, zero_point, quant_min, quant_max)


class _PerTensor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, quant_min, quant_max):
        ctx.save_for_backward(x)
        ctx.numbers = scale.item(), zero_point.item(), quant_min, quant_max
        return fake_quantize_affine(x, scale, zero_point, quant_min=quant_min, quant_max=quant_max)

    @staticmethod
    def backward(ctx, grad):
        return torch.ops.aten.hardtanh_backward(grad, *ctx.saved_tensors, *unclipped(*ctx.numbers)), *[None] * 4


@functools.lru_cache(maxsize=1024)
@np.errstate(all="ignore")
def unclipped(scale: float, zero_point: int, quant_min: int, quant_max: int) -> tuple[float, float]:
    """Return (low, high): quant_min <= rint(x * (1 / scale)) + zero_point <= quant_max where low < x < high."""
    inv_scale = np.float32(1) / np.float32(scale)
    return (float(_last_below(quant_min - zero_point, inv_scale)),
            -float(_last_below(zero_point - quant_max, inv_scale)))


def _last_below(level: int, inv_scale: np.float32) -> np.float32:
    """Return the greatest x with rint(x * inv_scale) < level."""
    edge = np.float32(level - 0.5)  # which rounds to the even one of its neighbours
    if level % 2:
        edge = np.nextafter(edge, np.float32(np.inf))
    x = edge / inv_scale
    while x * inv_scale >= edge:
        x = np.nextafter(x, np.float32(-np.inf))
    while (above := np.nextafter(x, np.float32(np.inf))) * inv_scale < edge:
        x = above
    return x
