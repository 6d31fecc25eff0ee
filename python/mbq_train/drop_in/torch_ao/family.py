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
from .learnable import learnable_fake_quantize
from .learnable_affine import SUM_BOUND

LIBRARY = "torch.ao"
_CLASSES = {
    "FakeQuantize": ("torch.ao.quantization.fake_quantize", "torchao.quantization.pt2e.fake_quantize"),
    "FusedMovingAvgObsFakeQuantize": ("torch.ao.quantization.fake_quantize", "torchao.quantization.pt2e.fake_quantize"),
    "_LearnableFakeQuantize": ("torch.ao.quantization._learnable_fake_quantize",),
}
_INTEGERS = (torch.qint8, torch.quint8, torch.qint32, torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32)


def torch_ao(module: nn.Module) -> Verdict:
    """Return what is to become of `module`, where it is a fake-quantizer of torch.ao."""
    name = _class_name(type(module))
    if name is None:
        return _stranger(module)
    reason = _unsupported(module)
    if reason:
        return Leave(LIBRARY, reason)
    if name == "FakeQuantize":
        return Replace(LIBRARY, fake_quantize)
    if name == "FusedMovingAvgObsFakeQuantize":
        return Replace(LIBRARY, fused_fake_quantize)
    return Replace(LIBRARY, learnable_fake_quantize, bound=SUM_BOUND)


def _class_name(kind: type[nn.Module]) -> str | None:
    for name, packages in _CLASSES.items():
        for package in packages:
            original = getattr(sys.modules.get(package), name, None)
            if original is not None and issubclass(kind, original) and kind.forward is original.forward:
                return name
    return None


def _stranger(module: nn.Module) -> Leave | None:
    """Name the fake-quantizers of torch.ao, and of its users, that have a forward of their own."""
    base = getattr(sys.modules.get("torch.ao.quantization.fake_quantize"), "FakeQuantizeBase", None)
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
