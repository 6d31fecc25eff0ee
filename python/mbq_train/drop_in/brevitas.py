"""The family of Brevitas: IntQuant, which every integer quantizer of weights and activations ends in.

What computes scales, zero points and bit-widths stays Brevitas' own, so that every way to find them goes on working.
"""

import sys
import weakref

import torch
from torch import nn

import mbq_kernels

from .brevitas_statistics import STATISTICS, takes
from .family import Leave, Replace, Verdict
from .replacement import original_forward

LIBRARY = "brevitas"
FEWEST = 2048  # elements: below, a call of ours takes as long as the operations that it saves
MOST_BITS = 16
_SUMS = ("gradients of scales and zero points are sums in another order, and so are those of what these are "
         "statistics of, in its last digits")
_OTHERS = ("BinaryQuant", "ClampedBinaryQuant", "TernaryQuant", "DecoupledIntQuant", "TruncIntQuant", "FloatQuant")
_MASKS = {"TensorClamp": "code", "TensorClampSte": "none"}
_VIEWS = ("Identity", "OverSubChannelBlockView", "DynamicOverSubChannelBlockView")  # the latter two: of groups
_BITS = weakref.WeakKeyDictionary()  # of modules: bit_width, its version, its value


def brevitas(module: nn.Module) -> Verdict:
    """Return what is to become of `module`, where it is of Brevitas and touches every element."""
    core, kind = sys.modules.get("brevitas.core.quant.int_base"), type(module)
    if core is None:
        return None
    if kind.__module__ == "brevitas.core.stats.stats_op" and kind.__name__ in STATISTICS:
        return Replace(LIBRARY, STATISTICS[kind.__name__])
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
    if type(module.input_view_impl).__name__ not in _VIEWS:
        return f"sees its input through {type(module.input_view_impl).__name__}"
    if type(module.delay_wrapper.delay_impl).__name__ != "_NoDelay":
        return "delays quantization"
    return ""


def _int_quant(module, scale, zero_point, bit_width, x):
    given = scale, zero_point, bit_width, x
    if not takes(x, FEWEST) or _unsupported(module) or bit_width.requires_grad or zero_point.numel() not in (
            1, scale.numel()) or not scale.dtype == zero_point.dtype == torch.float32:
        return original_forward(module, *given)
    view = module.input_view_impl(x)
    rows, axis = _rows(view, scale)
    if rows is None:
        return original_forward(module, *given)
    try:
        bits = _bits(module, bit_width)
        if not bits.is_integer() or not 1 < bits <= MOST_BITS:
            return original_forward(module, *given)
        lowest, highest = _range(int(bits), module.signed, module.narrow_range)
        zero_point = zero_point if zero_point.shape == scale.shape else zero_point.expand(scale.shape)
        if rows is not view:
            scale, zero_point = scale.reshape(-1), zero_point.reshape(-1)
        x_hat = mbq_kernels.fake_quantize_affine(
            rows, scale, zero_point, quant_min=lowest, quant_max=highest, axis=axis, quotient="division",
            zero_point_form="before_rounding", mask=_MASKS[type(module.tensor_clamp_impl).__name__], grad_product=True)
        return x_hat if rows is view else x_hat.reshape(view.shape)
    except (RuntimeError, ValueError):  # a value that ours refuses: Brevitas computes with it
        return original_forward(module, *given)


def _bits(module: nn.Module, bit_width: torch.Tensor) -> float:
    """Return bit_width's value. A GPU is asked for it once, because that waits for all that it has to do."""
    if bit_width.is_inference():
        return bit_width.item()
    kept, version, bits = _BITS.get(module, (None, None, None))  # kept: so that no other tensor gets its memory
    if kept is None or kept.data_ptr() != bit_width.data_ptr() or version != bit_width._version:
        bits = bit_width.item()
        _BITS[module] = bit_width, bit_width._version, bits
    return bits


def _rows(x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor | None, int | None]:
    """Return x, or a view of it, and its axis whose channels have a scale each, None for one scale; or (None, None)."""
    if scale.numel() == 1 and scale.dim() <= x.dim():
        return x, None
    wide = [axis for axis, size in enumerate(scale.shape) if size != 1]
    if scale.dim() == x.dim() and len(wide) == 1 and scale.shape[wide[0]] == x.shape[wide[0]]:
        return x, wide[0]
    if scale.numel() > 1 and scale.shape == (*x.shape[:-1], 1) and x.is_contiguous():  # groups
        return x.reshape(-1, x.shape[-1]), 0
    return None, None


def _range(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """Return Brevitas' min_int and max_int."""
    if not signed:
        return 0, 2**bits - 1 - narrow
    return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
