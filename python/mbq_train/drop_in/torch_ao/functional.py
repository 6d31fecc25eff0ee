"""torch's functions of fake-quantization, by kernels of mbq_kernels where these can and should take the call."""

from collections.abc import Callable

import torch

from .arithmetic import quantize_affine, worthwhile
from .learnable_affine import FEWEST, learnable_affine


def _per_tensor(input, scale, zero_point, quant_min, quant_max):
    if isinstance(zero_point, torch.Tensor):
        known = isinstance(scale, torch.Tensor) and _constant(scale, zero_point)
    else:
        known = quant_min <= zero_point <= quant_max
    if known and worthwhile(input):
        return quantize_affine(input, scale, zero_point, None, quant_min, quant_max)
    return torch.fake_quantize_per_tensor_affine(input, scale, zero_point, quant_min, quant_max)


def _per_channel(input, scale, zero_point, axis, quant_min, quant_max):
    if worthwhile(input) and _constant(scale, zero_point):
        return quantize_affine(input, scale, zero_point, axis, quant_min, quant_max)
    return torch.fake_quantize_per_channel_affine(input, scale, zero_point, axis, quant_min, quant_max)


def _learnable_per_tensor(input, scale, zero_point, quant_min, quant_max, grad_factor=1.0):
    if worthwhile(input, FEWEST) and _float32(input, scale, zero_point):
        return learnable_affine(input, scale, zero_point, None, quant_min, quant_max, grad_factor)
    return torch._fake_quantize_learnable_per_tensor_affine(input, scale, zero_point, quant_min, quant_max, grad_factor)


def _learnable_per_channel(input, scale, zero_point, axis, quant_min, quant_max, grad_factor=1.0):
    if worthwhile(input, FEWEST) and _float32(input, scale, zero_point):
        return learnable_affine(input, scale, zero_point, axis, quant_min, quant_max, grad_factor)
    return torch._fake_quantize_learnable_per_channel_affine(input, scale, zero_point, axis, quant_min, quant_max,
                                                             grad_factor)


def _constant(scale, zero_point) -> bool:
    return scale.dtype == torch.float32 and zero_point.dtype == torch.int32 and not scale.requires_grad


def _float32(*tensors) -> bool:
    return all(tensor.dtype == torch.float32 for tensor in tensors)


ROUTES: dict[Callable, Callable] = {
    torch.fake_quantize_per_tensor_affine: _per_tensor,
    torch.fake_quantize_per_channel_affine: _per_channel,
    torch._fake_quantize_learnable_per_tensor_affine: _learnable_per_tensor,
    torch._fake_quantize_learnable_per_channel_affine: _learnable_per_channel,
}
