"""The forward of torch.ao.quantization.FusedMovingAvgObsFakeQuantize, with the tensor read once an extreme."""

import torch
from torch import nn

from ..replacement import original_forward
from .arithmetic import quantize_affine, worthwhile
from .observer import channel_extremes, is_on

FEWEST = 12288  # elements: torch's operator, which still runs, has a fixed cost of its own


@torch.compiler.disable  # as torch does not trace the originals
def fused_fake_quantize(module: nn.Module, X: torch.Tensor) -> torch.Tensor:  # noqa: N803 - the original's name
    """Observe X by its extremes and fake-quantize it.

    torch's operator looks at the extremes of what it is given, and so leaves the same minimum, maximum, scale and zero
    point when it is given them alone. On CUDA it reads its switches on the device and is left as it is.
    """
    if not _supports(module, X) or not is_on(module.fake_quant_enabled):
        return original_forward(module, X)
    observer, axis = module.activation_post_process, module.ch_axis if module.is_per_channel else None
    original_forward(module, _extremes(X.detach(), axis, is_on(module.observer_enabled)))
    return quantize_affine(X, module.scale, module.zero_point, axis, observer.quant_min, observer.quant_max)


def _extremes(x: torch.Tensor, axis: int | None, observed: bool) -> torch.Tensor:
    """Return what is in the place of x; some of x where nobody observes it."""
    if axis is None:
        return torch.stack(torch.aminmax(x)) if observed else x.as_strided((1,), (1,))
    return channel_extremes(x, axis) if observed else x[(slice(None), *[slice(0, 1)] * (x.dim() - 1))]


def _supports(module: nn.Module, x: torch.Tensor) -> bool:
    if not worthwhile(x, FEWEST) or x.dtype != torch.float32 or not x.is_cpu:
        return False
    return not module.is_per_channel or x.dim() > 1 and module.ch_axis == 0
