"""Update an observer of torch.ao, and ask it for scale and zero point, with the same bits in less time.

Observers look at the minima and maxima of a tensor alone. Per channel, torch's aminmax takes a row at a time, many
times longer than amin and amax; what they found, two numbers a channel, is then shown to the observer itself in the
place of the tensor. Per tensor on a CPU, the 25 operators that follow aminmax are float32 arithmetic on single numbers,
which is done here.
"""

import functools
import math
import sys

import numpy as np
import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

_PER_TENSOR = ("MinMaxObserver", "MovingAverageMinMaxObserver")
_PER_CHANNEL = ("PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver")
_PACKAGES = ("torch.ao.quantization.observer", "torchao.quantization.pt2e.observer")
_SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)
_switches = WeakTensorKeyDictionary()  # of tensors on GPUs: how often they were written to, and whether they are on


def observe(observer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | tuple[float, int]:
    """Let `observer` see x, and return the scale and the zero point that it gives then, as tensors or as numbers."""
    x = x.detach()
    kind = _plain_kind(observer)
    if kind in _PER_TENSOR and _holds_numbers(observer, x):
        return _see_numbers(observer, x, kind)
    observer(channel_extremes(x, observer.ch_axis) if kind in _PER_CHANNEL and x.dim() > 1 else x)
    return observer.calculate_qparams()


def observed(observer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Do as observe, with tensors alone."""
    scale, zero_point = observe(observer, x)
    if isinstance(scale, torch.Tensor):
        return scale, zero_point
    return torch.tensor([scale]), torch.tensor([zero_point])


def keep(buffer: torch.Tensor, value: torch.Tensor | float) -> None:
    """Give `buffer` the value and the shape of what an observer gave."""
    shape = value.shape if isinstance(value, torch.Tensor) else (1,)
    if buffer.shape != shape:
        buffer.resize_(shape)
    buffer.copy_(value) if isinstance(value, torch.Tensor) else buffer.fill_(value)


def is_on(switch: torch.Tensor) -> bool:
    """Return what `switch[0] == 1` says. A GPU is asked again after writes alone, because that waits for all that it
    has to do."""
    if switch.is_cpu or torch.compiler.is_compiling() or switch.is_inference():
        return switch.item() == 1
    writes, on = _switches.get(switch, (None, False))
    if writes != switch._version:
        on = switch.item() == 1
        _switches[switch] = switch._version, on
    return on


def channel_extremes(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Return a tensor of two elements a channel, the least and the greatest of x, with the channels where x has them.
    """
    axis = axis % x.dim()
    others = [other for other in range(x.dim()) if other != axis]
    return torch.cat([x.amin(others, keepdim=True), x.amax(others, keepdim=True)], others[-1])


def _plain_kind(observer: nn.Module) -> str | None:
    """Return the name of the class of `observer`, where it is torch's and nobody listens to its calls."""
    if observer._forward_hooks or observer._forward_pre_hooks or "forward" in vars(observer):
        return None
    return _torch_name(type(observer))


@functools.cache
def _torch_name(kind: type[nn.Module]) -> str | None:
    known = any(getattr(sys.modules.get(package), kind.__name__, None) is kind for package in _PACKAGES)
    return kind.__name__ if known else None


def _holds_numbers(observer: nn.Module, x: torch.Tensor) -> bool:
    if not x.is_cpu or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    for tensor in (observer.min_val, observer.max_val, observer.eps):
        if not tensor.is_cpu or tensor.dtype != torch.float32 or tensor.numel() != 1:
            return False
    return True


@np.errstate(over="ignore")
def _see_numbers(observer: nn.Module, x: torch.Tensor, kind: str) -> tuple:
    min_val, max_val = observer.min_val, observer.max_val
    least, greatest = torch.aminmax(x)
    low, high = np.float32(least.item()), np.float32(greatest.item())
    old_low, old_high = np.float32(min_val.item()), np.float32(max_val.item())
    if not (math.isfinite(low) and math.isfinite(high)):
        observer(x)
        return observer.calculate_qparams()
    if kind == "MinMaxObserver":
        low, high = min(low, old_low), max(high, old_high)
    elif not (old_low == math.inf and old_high == -math.inf):
        share = np.float32(observer.averaging_constant)
        low, high = old_low + share * (low - old_low), old_high + share * (high - old_high)
    min_val.fill_(float(low))
    max_val.fill_(float(high))
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        return observer.calculate_qparams()
    return _number_qparams(observer, low, high)


def _number_qparams(observer: nn.Module, low: np.float32, high: np.float32) -> tuple[float, int]:
    """Do what observer.calculate_qparams does, in the same order and precision."""
    zero, eps = np.float32(0), np.float32(observer.eps.item())
    low, high = min(low, zero), max(high, zero)
    lowest, highest = observer.quant_min, observer.quant_max
    if observer.qscheme in _SYMMETRIC:
        scale = max(max(-low, high) / np.float32(float(highest - lowest) / 2), eps)
        zero_point = _symmetric_zero_point(observer)
    else:
        scale = max((high - low) / np.float32(highest - lowest), eps)
        zero_point = min(max(lowest - int(np.rint(low / scale)), lowest), highest)
    return float(scale), zero_point


def _symmetric_zero_point(observer: nn.Module) -> int:
    if observer.dtype in (torch.quint8, torch.uint8):
        return (observer.quant_min + observer.quant_max) // 2 if observer.has_customized_qrange else 128
    return 2**15 if observer.dtype == torch.uint16 else 0
