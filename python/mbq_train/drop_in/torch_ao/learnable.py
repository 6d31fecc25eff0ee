"""The forward of torch.ao's _LearnableFakeQuantize, symmetric, fused."""

import torch
from mbq_kernels import fake_quantize_affine
from torch import nn

from ..replacement import original_forward
from .arithmetic import worthwhile
from .observer import observe

SUM_BOUND = ("gradients of scale and zero point are sums in another order than torch's, which adds in float32: "
             "equal within its rounding")


def learnable_fake_quantize(module: nn.Module, X: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the original's name
    """Set scale by the observer or keep it above eps, and fake-quantize X with it."""
    if not worthwhile(X) or X.dtype != torch.float32:
        return original_forward(module, X)
    if module.static_enabled[0] == 1:
        scale, zero_point = observe(module.activation_post_process, X)
        module.scale.data.copy_(scale)
        module.zero_point.data.copy_(zero_point)
    else:
        module.scale.data.clamp_(min=module.eps.item())
    if module.fake_quant_enabled[0] != 1:
        return X
    module.zero_point.data.zero_()
    factor = 1.0 / (X.numel() * module.quant_max) ** 0.5 if module.use_grad_scaling else 1.0
    axis = module.ch_axis if module.qscheme == torch.per_channel_symmetric else None
    return fake_quantize_affine(X, module.scale, module.zero_point, quant_min=module.quant_min,
                                quant_max=module.quant_max, axis=axis, grad_factor=factor)
