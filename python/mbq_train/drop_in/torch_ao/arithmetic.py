"""Fake-quantize as torch's operators do, with the kernels of mbq_kernels where these compute the same and are faster.
"""

import torch

from mbq_kernels import fake_quantize_affine

from .per_tensor import per_tensor, takes

FEWEST = 8192  # elements: below, the fixed cost of a call is more than the kernel saves
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TYPES = (torch.Tensor, torch.nn.Parameter)


def worthwhile(x, fewest: int = FEWEST) -> bool:
    """Return whether kernels of ours can and should take x."""
    return type(x) in _TYPES and x.dtype in DTYPES and x.numel() >= fewest and x.layout == torch.strided


def quantize_affine(x: torch.Tensor, scale: torch.Tensor | float, zero_point: torch.Tensor | int, axis: int | None,
                    quant_min: int, quant_max: int) -> torch.Tensor:
    """Do as torch.fake_quantize_per_tensor_affine, or with `axis` per_channel.

    scale and zero_point may change before the backward, as buffers of observers do: it is given copies.
    """
    scale_, zero_point_ = _copied(scale, x, torch.float32), _copied(zero_point, x, torch.int32)
    try:
        if takes(x, axis):
            return per_tensor(x, scale_, zero_point_, quant_min, quant_max)
        return fake_quantize_affine(x, scale_, zero_point_, quant_min=quant_min, quant_max=quant_max, axis=axis)
    except (RuntimeError, ValueError):  # a value that ours refuses: torch computes with it, or refuses it too
        return _torch_quantize_affine(x, scale, zero_point, axis, quant_min, quant_max)


def _copied(value: torch.Tensor | float, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.clone() if isinstance(value, torch.Tensor) else torch.full((1,), value, dtype=dtype, device=x.device)


def _torch_quantize_affine(x, scale, zero_point, axis, quant_min, quant_max) -> torch.Tensor:
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, quant_min, quant_max)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, quant_min, quant_max)
