"""torchao's fake-quantizers whose range is that of every row or group: range and codes from one pass, on a CPU.

The formulas are those of torchao 0.18, which need not be those of another version: the first call with each
configuration compares both, to the last bit, on rows of all sizes. Finite x alone: of a row with -infinity torchao
makes infinities, and we NaN.
"""

import sys

import torch
from torch import nn

import mbq_kernels

_PROBED = 48  # elements of a row, where the size of groups does not say it
_agreed: dict[tuple, bool] = {}


def dynamic(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """Return what `module` makes of x, and leave in it the scale and zero point that it would; None where its own code
    must do that."""
    config, known = module.config, sys.modules["torchao.quantization.qat.fake_quantizer"].IntxFakeQuantizer
    original = type(module).mbq_original
    if not (config.is_dynamic and x.is_cpu and x.dtype == torch.float32) or config.range_learning:
        return None
    if torch._C._are_functorch_transforms_active():
        return None
    if original._per_token_forward is not known._per_token_forward or (
            original._per_channel_or_group_forward is not known._per_channel_or_group_forward):
        return None
    size = _size(config, x)
    if size is None or not _agree(known, config, size):
        return None
    x_hat, module.scale, module.zero_point = _computed(config, x, size)
    return x_hat


def _size(config, x: torch.Tensor) -> int | None:
    """Return how many elements have a range of their own; None where ours are not torchao's."""
    kind, last = type(config.granularity).__name__, x.shape[-1]
    if config.zero_point_precision not in (torch.int32, torch.float32) or (kind == "PerToken") == config.is_symmetric:
        return None
    if kind == "PerToken":
        return last
    size = config.granularity.group_size if kind == "PerGroup" else last
    return size if x.dim() == 2 and 1 < size <= last and last % size == 0 else None


def _computed(config, x: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lowest, highest = sys.modules["torchao.quantization.quant_primitives"]._DTYPE_TO_QVALUE_BOUNDS[config.dtype]
    x_hat, *found = mbq_kernels.fake_quantize_dynamic(
        x, quant_min=lowest, quant_max=highest, symmetric=config.is_symmetric, eps=config.eps, grad_product=True,
        group_size=None if size == x.shape[-1] else size)
    scale, zero_point = found if not config.is_symmetric else (value.reshape(len(x), -1) for value in found)
    return x_hat, scale, zero_point.to(config.zero_point_precision)


def _agree(known: type[nn.Module], config, size: int) -> bool:
    """Return whether torchao computes what we do with this configuration."""
    kind = type(config.granularity).__name__
    size = size if kind == "PerGroup" else _PROBED
    key = kind, size, config.dtype, config.mapping_type, config.zero_point_precision, config.eps
    if key not in _agreed:
        _agreed[key] = _compared(known(config), size)
    return _agreed[key]


@torch.inference_mode(False)
@torch.enable_grad()
def _compared(module: nn.Module, size: int) -> bool:
    generator, options = torch.Generator().manual_seed(0), {"dtype": torch.float32, "device": "cpu"}
    sizes = 10.0 ** torch.linspace(-42, 8, 96, **options)[:, None]
    x = torch.randn(96, 2 * size, generator=generator, **options) * sizes
    x[::5], x[1::5], x[2::5, 1:] = x[::5].abs(), -x[1::5].abs(), 0.0
    x = (x if type(module.config.granularity).__name__ == "PerGroup" else x[:, :size].contiguous()).requires_grad_()
    grad = torch.randn(x.shape, generator=generator, **options)
    theirs, ours = module(x), _computed(module.config, x, size)
    gradients = (torch.autograd.grad(x_hat, x, grad)[0] for x_hat in (theirs, ours[0]))
    pairs = [(theirs, ours[0]), (module.scale, ours[1]), (module.zero_point, ours[2]), tuple(gradients)]
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)
