"""The forwards of torch.ao's _LearnableFakeQuantize and of torchao's LearnableFakeQuantize for pt2e, fused."""

import torch
from torch import nn

from ..replacement import original_forward
from .arithmetic import FEWEST, worthwhile
from .learnable_affine import FEWEST as FEWEST_WITH_ZERO_POINT
from .learnable_affine import learnable_affine
from .observer import is_on, observed

_CHANNELS = (torch.per_channel_symmetric, torch.per_channel_affine)
_SYMMETRIC = (torch.per_channel_symmetric, torch.per_tensor_symmetric)


@torch.compiler.disable  # as torch does not trace the originals
def learnable_fake_quantize(module: nn.Module, X: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the original's name
    """Take scale and zero point from the observer or keep scale above eps, and fake-quantize X with them."""
    if not _supports(module, X):
        return original_forward(module, X)
    if is_on(module.static_enabled):
        scale, zero_point = observed(module.activation_post_process, X)
        module.scale.data.copy_(scale)
        module.zero_point.data.copy_(zero_point)
    else:
        module.scale.data.clamp_(min=module.eps)  # by a number a GPU would have to be asked for
    return _quantized(module, X) if is_on(module.fake_quant_enabled) else X


@torch.compiler.disable  # as torch does not trace the originals
def pt2e_fake_quantize(module: nn.Module, X: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the original's name
    """Take scale and zero point from the observer, or make them on the first call, and fake-quantize X with them."""
    if not _supports(module, X):
        return original_forward(module, X)
    if is_on(module.observer_enabled) or not module._initialized:
        module._initialize_or_update_qparams(*observed(module.activation_post_process, X))
    return _quantized(module, X) if is_on(module.fake_quant_enabled) else X


def _supports(module: nn.Module, x: torch.Tensor) -> bool:
    fewest = FEWEST if module.qscheme in _SYMMETRIC else FEWEST_WITH_ZERO_POINT
    return worthwhile(x, fewest) and x.dtype == torch.float32


def _quantized(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    axis = module.ch_axis if module.qscheme in _CHANNELS else None
    factor = 1.0 / (x.numel() * module.quant_max) ** 0.5 if module.use_grad_scaling else 1.0
    symmetric = module.qscheme in _SYMMETRIC
    if symmetric:
        module.zero_point.data.zero_()
    return learnable_affine(x, module.scale, module.zero_point, axis, module.quant_min, module.quant_max, factor,
                            symmetric=symmetric)
