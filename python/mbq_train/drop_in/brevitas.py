"""The family of Brevitas: IntQuant, which every integer quantizer of weights and activations ends in, and AbsMax.

What computes scales, zero points and bit-widths stays Brevitas' own, so that every way to find them goes on working.
"""

import sys

import numpy as np
import torch
from torch import nn

import mbq_kernels

from .family import Leave, Replace, Verdict
from .replacement import original_forward
from .torch_ao.arithmetic import worthwhile

LIBRARY = "brevitas"
FEWEST = 2048  # elements: below, a call of ours takes as long as the operations that it saves
MOST_BITS = 16
_SUMS = "gradients of scales and zero points are sums in another order"
_OTHERS = ("BinaryQuant", "ClampedBinaryQuant", "TernaryQuant", "DecoupledIntQuant", "TruncIntQuant", "FloatQuant")
_MASKS = {"TensorClamp": "code", "TensorClampSte": "none"}


def brevitas(module: nn.Module) -> Verdict:
    """Return what is to become of `module`, where it is of Brevitas and touches every element."""
    core, stats = sys.modules.get("brevitas.core.quant.int_base"), sys.modules.get("brevitas.core.stats.stats_op")
    if core is None:
        return None
    kind = type(module)
    if stats is not None and isinstance(module, stats.AbsMax) and kind.forward is stats.AbsMax.forward:
        return Replace(LIBRARY, _abs_max) if module.stats_reduce_dim in (None, 1) else None
    if isinstance(module, core.IntQuant) and kind.forward is core.IntQuant.forward:
        reason = _unsupported(module)
        return Leave(LIBRARY, reason) if reason else Replace(LIBRARY, _int_quant, bound=_SUMS)
    if kind.__module__.startswith("brevitas.core.quant") and kind.__name__ in _OTHERS:
        return Leave(LIBRARY, "does not compute as integer quantizers do")
    return None


def _unsupported(module: nn.Module) -> str:
    if type(module.float_to_int_impl).__name__ != "RoundSte":
        return f"rounds by {type(module.float_to_int_impl).__name__}"
    if type(module.tensor_clamp_impl).__name__ not in _MASKS:
        return f"clamps by {type(module.tensor_clamp_impl).__name__}"
    if type(module.input_view_impl).__name__ != "Identity":
        return f"sees its input through {type(module.input_view_impl).__name__}"
    if type(module.delay_wrapper.delay_impl).__name__ != "_NoDelay":
        return "delays quantization"
    return ""


def _int_quant(module, scale, zero_point, bit_width, x):
    axis = _axis(scale, x)
    if not worthwhile(x, FEWEST) or axis is False or bit_width.requires_grad or zero_point.numel() not in (
            1, scale.numel()) or not scale.dtype == zero_point.dtype == torch.float32 or x.requires_grad is None:
        return original_forward(module, scale, zero_point, bit_width, x)
    bits = bit_width.item()
    if not bits.is_integer() or not 1 < bits <= MOST_BITS or x.dtype != torch.float32:
        return original_forward(module, scale, zero_point, bit_width, x)
    lowest, highest = _range(int(bits), module.signed, module.narrow_range)
    try:
        return mbq_kernels.fake_quantize_affine(
            x, scale.reshape(-1), zero_point.expand(scale.shape).reshape(-1), quant_min=lowest, quant_max=highest,
            axis=axis, quotient="division", zero_point_form="before_rounding",
            mask=_MASKS[type(module.tensor_clamp_impl).__name__], grad_product=True)
    except (RuntimeError, ValueError):  # a value that ours refuses: Brevitas computes with it
        return original_forward(module, scale, zero_point, bit_width, x)


def _axis(scale: torch.Tensor, x: torch.Tensor) -> int | None | bool:
    """Return the axis of x whose channels have a scale each, None for one scale, False where neither is so."""
    if scale.numel() == 1:
        return None if scale.dim() <= x.dim() else False
    wide = [axis for axis, size in enumerate(scale.shape) if size != 1]
    if scale.dim() != x.dim() or len(wide) != 1 or scale.shape[wide[0]] != x.shape[wide[0]]:
        return False
    return wide[0]


def _range(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """Return Brevitas' min_int and max_int."""
    if not signed:
        return 0, 2**bits - 1 - narrow
    return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1


def _abs_max(module, x):
    rows = module.stats_reduce_dim is not None
    if not worthwhile(x, FEWEST) or not x.is_contiguous() or rows and x.dim() != 2 or torch.compiler.is_compiling():
        return original_forward(module, x)
    largest = _AbsMax.apply(x.reshape(x.shape[0] if rows else 1, -1))
    return largest if rows and module.keepdim else largest.reshape(x.shape[:1] if rows else ())


class _AbsMax(torch.autograd.Function):
    """max |x| of every row, (R, 1). As autograd of torch.max has it, the gradient of a single row goes to all elements
    that have it, in equal parts, and in several rows to the first one of each."""

    @staticmethod
    def forward(ctx, x):
        largest = torch.maximum(-x.amin(1, keepdim=True), x.amax(1, keepdim=True))
        ctx.save_for_backward(x, largest)
        return largest

    @staticmethod
    def backward(ctx, grad):
        x, largest = ctx.saved_tensors
        if not x.is_cpu:
            found = (x == largest) | (x == -largest)
            share = grad / found.sum(1, keepdim=True) if len(x) == 1 else grad * (found.cumsum(1) == 1)
            return torch.where(found, x.sign() * share, 0)
        values, most = x.numpy(), largest.numpy()
        found = (values == most) | (values == -most)  # in NumPy, which takes a tenth of the time
        if len(x) == 1 and (count := np.count_nonzero(found)) > 1:
            return torch.where(torch.from_numpy(found), x.sign() * (grad / count), 0)
        index = torch.from_numpy(found.argmax(1, keepdims=True))
        return torch.zeros_like(x).scatter_(1, index, x.gather(1, index).sign() * grad)
