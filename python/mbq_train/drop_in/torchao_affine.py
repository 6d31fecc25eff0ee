"""torchao's _fake_quantize_affine by kernels of mbq_kernels.

Its arithmetic is clamp(round(x * (1/scale)) + zero_point) in the dtype of x, so ours in float32 alone, and its gradient
is autograd's: (grad * scale) * (1/scale) where nothing was clamped.
"""

import math
from collections.abc import Callable

import torch

from mbq_kernels import fake_quantize_affine

from .torch_ao.arithmetic import worthwhile

_INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64)
_CODES = (torch.int8, torch.uint8, torch.int16, torch.int32)


def torchao_affine(original: Callable, *args, **kwargs) -> torch.Tensor:
    """Return what `original`, torchao's function, returns for these arguments."""
    with torch._C.DisableTorchFunction():  # redirect's mode would see every view and attribute here
        x_hat = _fused(*args, **kwargs)
    return original(*args, **kwargs) if x_hat is None else x_hat


def _fused(input, block_size, scale, zero_point, quant_dtype, quant_min=None, quant_max=None,
           zero_point_domain="INT") -> torch.Tensor | None:
    domain = getattr(zero_point_domain, "name", zero_point_domain)
    if domain != "INT" or not _in_range(quant_dtype, quant_min, quant_max):
        return None
    if not (worthwhile(input) and input.dtype == scale.dtype == torch.float32 and input.is_contiguous()):
        return None
    if not isinstance(zero_point, torch.Tensor) or zero_point.dtype not in _INTEGERS or scale.requires_grad:
        return None
    shape, axis, count = _granularity(tuple(input.shape), tuple(block_size))
    if not count == scale.numel() == zero_point.numel():
        return None
    try:
        x_hat = fake_quantize_affine(input.view(shape), scale.reshape(-1).clone(),
                                     zero_point.reshape(-1).to(torch.int32, copy=True), quant_min=quant_min,
                                     quant_max=quant_max, axis=axis, grad_product=True)
    except (RuntimeError, ValueError):  # a value that ours refuses: torchao computes with it
        return None
    return x_hat.view(input.shape)


def _in_range(dtype: torch.dtype, quant_min, quant_max) -> bool:
    if dtype not in _CODES or type(quant_min) is not int or type(quant_max) is not int:
        return False
    return torch.iinfo(dtype).min <= quant_min < quant_max <= torch.iinfo(dtype).max


def _granularity(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[tuple[int, ...], int | None, int]:
    """Return (the shape to see x in, the axis of it whose indices have a scale each, how many); none where not known.
    """
    if block == shape:
        return shape, None, 1
    if len(block) != len(shape) or 0 in block:
        return shape, None, 0
    axes = [axis for axis, (size, length) in enumerate(zip(shape, block, strict=True)) if length != size]
    if len(axes) == 1 and block[axes[0]] == 1:
        return shape, axes[0], shape[axes[0]]
    if all(length == 1 for length in block[:-1]) and shape[-1] % block[-1] == 0:
        rows = math.prod(shape) // block[-1]
        return (rows, block[-1]), 0, rows
    return shape, None, 0
