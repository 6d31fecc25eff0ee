"""The forward of torch.ao's _LearnableFakeQuantize, fused."""

import torch
from torch import nn

from mbq_kernels import fake_quantize_affine

from ..replacement import original_forward
from .arithmetic import FEWEST, worthwhile
from .learnable_affine import FEWEST as FEWEST_WITH_ZERO_POINT
from .learnable_affine import learnable_affine
from .observer import is_on, observe

_CHANNELS = (torch.per_channel_symmetric, torch.per_channel_affine)
_SYMMETRIC = (torch.per_channel_symmetric, torch.per_tensor_symmetric)


def learnable_fake_quantize(module: nn.Module, X: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the original's name
    """Take scale and zero point from the observer or keep scale above eps, and fake-quantize X with them."""
    fewest = FEWEST if module.qscheme in _SYMMETRIC else FEWEST_WITH_ZERO_POINT
    if not worthwhile(X, fewest) or X.dtype != torch.float32:
        return original_forward(module, X)
    if is_on(module.static_enabled):
        scale, zero_point = observe(module.activation_post_process, X)
        for parameter, value in ((module.scale, scale), (module.zero_point, zero_point)):
            parameter.data.copy_(torch.as_tensor(value))
    else:
        module.scale.data.clamp_(min=module.eps.item())
    return _quantized(module, X) if is_on(module.fake_quant_enabled) else X


def _quantized(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    axis = module.ch_axis if module.qscheme in _CHANNELS else None
    factor = 1.0 / (x.numel() * module.quant_max) ** 0.5 if module.use_grad_scaling else 1.0
    if module.qscheme not in _SYMMETRIC:
        return learnable_affine(x, module.scale, module.zero_point, axis, module.quant_min, module.quant_max, factor)
    module.zero_point.data.zero_()
    return fake_quantize_affine(x, module.scale, module.zero_point, quant_min=module.quant_min,
                                quant_max=module.quant_max, axis=axis, grad_factor=factor)
