"""The forward of torch.ao.quantization.FakeQuantize, fused."""

import torch
from torch import nn

from ..replacement import original_forward
from .arithmetic import quantize_affine, worthwhile
from .observer import observe


def fake_quantize(module: nn.Module, X: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the original's name
    """Observe X, and fake-quantize it with the scale and zero point that this gives, as far as both are enabled."""
    if not worthwhile(X):
        return original_forward(module, X)
    if module.observer_enabled[0] == 1:
        _keep(module, *_qparams(module, X))
    if module.fake_quant_enabled[0] == 1:
        observer = module.activation_post_process
        axis = module.ch_axis if module.is_per_channel else None
        X = quantize_affine(X, module.scale, module.zero_point, axis, observer.quant_min, observer.quant_max)
    return X


def _qparams(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if type(module).calculate_qparams.__qualname__ == "FakeQuantize.calculate_qparams":  # asks the observer
        return observe(module.activation_post_process, x)
    module.activation_post_process(x.detach())
    return module.calculate_qparams()


def _keep(module: nn.Module, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
    if module.scale.shape != scale.shape:
        module.scale.resize_(scale.shape)
        module.zero_point.resize_(zero_point.shape)
    module.scale.copy_(scale)
    module.zero_point.copy_(zero_point)
