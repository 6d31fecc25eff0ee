"""Which modules are torch.ao's fake-quantizers, and which of them can be replaced.

A module is known by the forward of its class, so that a subclass which keeps the forward is known too and one which
has another is not.
"""

import sys

import torch
from torch import nn

from ..family import Leave, Replace, Verdict
from .fake_quantize import fake_quantize
from .fused import fused_fake_quantize
from .learnable import learnable_fake_quantize, pt2e_fake_quantize
from .learnable_affine import SUM_BOUND

LIBRARY = "torch.ao"
_TORCH, _TORCHAO = "torch.ao.quantization", "torchao.quantization.pt2e"
_FORWARDS = (
    (f"{_TORCH}.fake_quantize", "FakeQuantize", fake_quantize, ""),
    (f"{_TORCHAO}.fake_quantize", "FakeQuantize", fake_quantize, ""),
    (f"{_TORCH}.fake_quantize", "FusedMovingAvgObsFakeQuantize", fused_fake_quantize, ""),
    (f"{_TORCHAO}.fake_quantize", "FusedMovingAvgObsFakeQuantize", fused_fake_quantize, ""),
    (f"{_TORCH}._learnable_fake_quantize", "_LearnableFakeQuantize", learnable_fake_quantize, SUM_BOUND),
    (f"{_TORCHAO}.learnable_fake_quantize", "LearnableFakeQuantize", pt2e_fake_quantize, SUM_BOUND),
)
_INTEGERS = (torch.qint8, torch.quint8, torch.qint32, torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32)


def torch_ao(module: nn.Module) -> Verdict:
    """Return what is to become of `module`, where it is a fake-quantizer of torch.ao."""
    kind = type(module)
    for package, name, forward, bound in _FORWARDS:
        original = getattr(sys.modules.get(package), name, None)
        if original is not None and issubclass(kind, original) and kind.forward is original.forward:
            reason = _unsupported(module)
            return Leave(LIBRARY, reason) if reason else Replace(LIBRARY, forward, bound=bound)
    return _stranger(module)


def _stranger(module: nn.Module) -> Leave | None:
    """Name the fake-quantizers of torch.ao, and of its users, that have a forward of their own."""
    for package in (_TORCH, _TORCHAO):
        base = getattr(sys.modules.get(f"{package}.fake_quantize"), "FakeQuantizeBase", None)
        if base is not None and isinstance(module, base):
            return Leave(LIBRARY, "has a forward that is not known")
    return None


def _unsupported(module: nn.Module) -> str:
    observer = module.activation_post_process
    if module.dtype not in _INTEGERS:
        return f"quantizes to {module.dtype}"
    if module.qscheme == torch.per_channel_affine_float_qparams:
        return "has a floating-point zero point"
    if observer.quant_max - observer.quant_min > 2**16:
        return f"has more than 16 bits (codes from {observer.quant_min} to {observer.quant_max})"
    return ""
