"""The forward of torch.ao.quantization.FakeQuantize, fused."""

import torch
from torch import nn

from ..replacement import original_forward
from .arithmetic import quantize_affine, worthwhile
from .observer import is_on, keep, observe


@torch.compiler.disable  # as torch does not trace the originals
def fake_quantize(module: nn.Module, X: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the original's name
    """Observe X, and fake-quantize it with the scale and zero point that this gives, as far as both are enabled."""
    if not worthwhile(X):
        return original_forward(module, X)
    if is_on(module.observer_enabled):
        scale, zero_point = _qparams(module, X)
        keep(module.scale, scale)
        keep(module.zero_point, zero_point)
    if is_on(module.fake_quant_enabled):
        observer = module.activation_post_process
        axis = module.ch_axis if module.is_per_channel else None
        X = quantize_affine(X, module.scale, module.zero_point, axis, observer.quant_min, observer.quant_max)
    return X


def _qparams(module: nn.Module, x: torch.Tensor) -> tuple:
    if type(module).calculate_qparams.__qualname__ == "FakeQuantize.calculate_qparams":  # asks the observer
        return observe(module.activation_post_process, x)
    module.activation_post_process(x.detach())
    return module.calculate_qparams()
