"""The forward of torch.ao.quantization.FusedMovingAvgObsFakeQuantize, with the tensor read once an extreme."""

import torch
from torch import nn

from ..replacement import original_forward
from .arithmetic import quantize_affine, worthwhile
from .observer import channel_extremes

FEWEST = 12288  # elements: torch's operator, which still runs, has a fixed cost of its own


def fused_fake_quantize(module: nn.Module, X: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the original's name
    """Observe X by its extremes and fake-quantize it.

    torch's operator looks at the extremes of what it is given, and so leaves the same minimum, maximum, scale and zero
    point when it is given them alone. On CUDA it reads its switches on the device and is left as it is.
    """
    if not _supports(module, X) or module.fake_quant_enabled[0] != 1:
        return original_forward(module, X)
    observer, axis = module.activation_post_process, None
    extremes = X.detach()
    if module.is_per_channel:
        axis = module.ch_axis
        extremes = channel_extremes(extremes, axis) if module.observer_enabled[0] == 1 else extremes.narrow(-1, 0, 1)
    elif module.observer_enabled[0] == 1:
        extremes = torch.stack(torch.aminmax(extremes))
    else:
        extremes = extremes.flatten()[:1]
    original_forward(module, extremes)
    return quantize_affine(X, module.scale, module.zero_point, axis, observer.quant_min, observer.quant_max)


def _supports(module: nn.Module, x: torch.Tensor) -> bool:
    if not worthwhile(x, FEWEST) or x.dtype != torch.float32 or not x.is_cpu:
        return False
    return not module.is_per_channel or x.dim() > 1 and module.ch_axis == 0
