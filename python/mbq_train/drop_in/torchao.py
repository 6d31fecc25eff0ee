"""The family of torchao: IntxFakeQuantizer, and so FakeQuantizedLinear and FakeQuantizedEmbedding.

torchao's own methods run, so that its configuration is read by itself; replaced are the two kinds of functions in them
that touch every element, which choose a range and fake-quantize. Where both are one pass of ours, no method runs.
"""

import functools
import sys

import torch
from torch import nn

import mbq_kernels

from .family import Leave, Replace, Verdict
from .rebinding import rebound
from .replacement import original_forward
from .torch_ao.arithmetic import DTYPES, worthwhile
from .torchao_dynamic import dynamic

LIBRARY = "torchao"
FEWEST, FEWEST_HALVES = 16384, 32768  # elements: below, calls of ours take as long as the operations that they save
_SUMS = ("gradients of scales and zero points are sums in another order; with half floats of terms that are not "
         "rounded first, and the gradient of x is rounded once, where torchao rounds it after each of two operations")
_PER_ROW = ("PerToken", "PerAxis", "PerRow", "PerGroup")


def torchao(module: nn.Module) -> Verdict:
    """Return what is to become of `module`, where it is a fake-quantizer of torchao."""
    library = sys.modules.get("torchao.quantization.qat.fake_quantizer")
    if library is None or not isinstance(module, library.FakeQuantizerBase):
        return None
    known = library.IntxFakeQuantizer
    if not (isinstance(module, known) and type(module).forward is known.forward):
        return Leave(LIBRARY, "does not compute with integers of a fixed range")
    config = module.config
    if getattr(config.zero_point_domain, "name", None) != "INT":
        return Leave(LIBRARY, f"has zero points in {config.zero_point_domain}")
    if config.scale_precision not in (None, torch.float32):  # None: of x's dtype, looked at in every call
        return Leave(LIBRARY, f"divides in {config.scale_precision}")
    if type(config.granularity).__name__ not in _PER_ROW:
        return Leave(LIBRARY, f"has a granularity that is not known, {config.granularity}")
    return Replace(LIBRARY, _forward, bound=_SUMS if config.range_learning else "")


def _forward(module, x):
    if (not torch.compiler.is_compiling() and worthwhile(x, 1) and x.is_contiguous() and module.enabled
            and (x_hat := dynamic(module, x)) is not None):
        return x_hat
    fewest = FEWEST if x.dtype == torch.float32 else FEWEST_HALVES
    if torch.compiler.is_compiling() or not worthwhile(x, fewest) or not x.is_contiguous() or not _supported(module, x):
        return original_forward(module, x)
    original = type(module).mbq_original
    if type(module.config.granularity).__name__ == "PerToken":
        method = rebound(original._per_token_forward, {
            "choose_qparams_affine": _choose_qparams, "_fake_quantize_per_token": _fake_quantize_per_token})
    else:
        names = original._per_channel_or_group_forward.__globals__
        method = rebound(original._per_channel_or_group_forward, {
            **{name: rebound(names[name], {"choose_qparams_affine": _choose_qparams})
               for name in ("get_group_qparams_symmetric", "get_groupwise_affine_qparams")},
            "_fake_quantize_per_channel_group": _fake_quantize_per_channel_group})
    return method(module, x)


def _supported(module: nn.Module, x: torch.Tensor) -> bool:
    config = module.config
    if not module.enabled or config.range_learning and module.scale is None:
        return False
    if x.dtype == torch.float32:
        return True
    # torchao rounds codes and zero points to half floats, which changes no integer of the range
    bounded = config.is_symmetric or type(config.granularity).__name__ == "PerToken"
    return bounded and (config.is_dynamic or module.zero_point is None or not module.zero_point.is_floating_point())


def _choose_qparams(input, mapping_type, block_size, *args, **kwargs):
    """Return what torchao's choose_qparams_affine does for the extremes of every block, which decide it."""
    theirs = sys.modules["torchao.quantization.quant_primitives"].choose_qparams_affine
    size = block_size[-1]
    if any(length != 1 for length in block_size[:-1]) or size < 2:
        return theirs(input, mapping_type, block_size, *args, **kwargs)
    rows = input.detach().reshape(-1, size).float()  # torch's minima of half floats take ten times as long
    pairs = torch.stack([rows.amin(1), rows.amax(1)], 1).to(input.dtype)
    return theirs(pairs.reshape(*input.shape[:-1], -1), mapping_type, [*block_size[:-1], 2], *args, **kwargs)


def _fake_quantize_per_token(input, scales, zero_points, quant_min, quant_max):
    theirs = sys.modules["torchao.quantization.qat.utils"]._fake_quantize_per_token
    return _by_rows(theirs, (input, scales, zero_points, quant_min, quant_max), input.shape[-1])


def _fake_quantize_per_channel_group(input, scales, zero_points, quant_min, quant_max, group_size, zero_point_domain):
    theirs = sys.modules["torchao.quantization.qat.utils"]._fake_quantize_per_channel_group
    given = (input, scales, zero_points, quant_min, quant_max)
    if input.dim() != 2 or group_size < 2 or input.shape[-1] % group_size:
        return theirs(*given, group_size, zero_point_domain)
    return _by_rows(theirs, given, group_size, group_size, zero_point_domain)


def _by_rows(theirs, given, size: int, *more):
    """Fake-quantize rows of `size` elements, which have a scale and a zero point each."""
    x, scales, zero_points, quant_min, quant_max = given
    rows = x.numel() // size
    if scales.dtype != torch.float32 or not rows == scales.numel() == zero_points.numel() or x.dtype not in DTYPES:
        return theirs(*given, *more)
    form = "after_rounding" if zero_points.is_floating_point() else "integer"
    twice = x.dtype != torch.float32 and not scales.requires_grad
    try:
        x_hat = mbq_kernels.fake_quantize_affine(
            x.reshape(rows, size), scales.reshape(-1), zero_points.reshape(-1), quant_min=quant_min,
            quant_max=quant_max, axis=0, zero_point_form=form, grad_product=not twice)
    except (RuntimeError, ValueError):  # a value that ours refuses: torchao computes with it
        return theirs(*given, *more)
    if twice and x_hat.requires_grad:
        x_hat.register_hook(functools.partial(_gradient_rounded_twice, scales.detach().reshape(-1, 1)))
    return x_hat.reshape(x.shape)


def _gradient_rounded_twice(scales, grad):
    """Give the gradient of half floats the factors scale and 1 / scale, and a rounding after each, as autograd does."""
    return ((grad * scales).to(grad.dtype) * (1.0 / scales)).to(grad.dtype)
