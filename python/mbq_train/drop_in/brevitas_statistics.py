"""Brevitas' statistics that search: extremes of whole tensors, rows and groups, and percentiles of whole tensors."""

import sys

import numpy as np
import torch

from .rebinding import rebound
from .replacement import original_forward
from .torch_ao.arithmetic import worthwhile

FEWEST = 16384  # elements: below, NumPy's and autograd's calls take as long as torch's kernels


def takes(x: torch.Tensor, fewest: int) -> bool:
    """Return whether kernels of ours can and should take x. torch.compile fuses Brevitas' operations itself."""
    return (worthwhile(x, fewest) and x.dtype == torch.float32 and not torch.compiler.is_compiling()
            and not torch._C._are_functorch_transforms_active())


def _abs_max(module, x):
    return _extreme(module, x, "size") if _reduces(module, x) else original_forward(module, x)


def _abs_min_max(module, x):
    if not _reduces(module, x):
        return original_forward(module, x)
    lowest = torch.clamp(_extreme(module, x, "lowest"), max=module.zero())
    return torch.abs(_extreme(module, x, "highest") - lowest)


def _negative_min_or_zero(module, x):
    if not _reduces(module, x):
        return original_forward(module, x)
    return torch.clamp(_extreme(module, x, "lowest"), max=module.zero())


def _percentile(module, x):
    """Return what Brevitas' own forward does with another search for the kth value."""
    if not takes(x, FEWEST):
        return original_forward(module, x)
    return rebound(type(module).mbq_original.forward, {"kthvalue": _kthvalue})(module, x)


STATISTICS = {
    "AbsMax": _abs_max, "AbsMinMax": _abs_min_max, "NegativeMinOrZero": _negative_min_or_zero,
    "AbsPercentile": _percentile, "NegativePercentileOrZero": _percentile, "PercentileInterval": _percentile,
}


def _reduces(module, x: torch.Tensor) -> bool:
    """Return whether it is all of x on a CPU, or its rows, that the module reduces; GPUs would gain nothing."""
    return takes(x, FEWEST) and x.is_cpu and x.is_contiguous() and module.stats_reduce_dim in (None, -1, x.dim() - 1)


def _extreme(module, x: torch.Tensor, which: str) -> torch.Tensor:
    by_row = module.stats_reduce_dim is not None
    extreme = _Extreme.apply(x.reshape(-1, x.shape[-1]) if by_row else x.reshape(1, -1), which, by_row)
    return extreme.reshape(x.shape[:-1] + (1,) * module.keepdim if by_row else ())


class _Extreme(torch.autograd.Function):
    """Of every row the "highest", "lowest" or largest absolute value ("size"), (R, 1).

    As autograd of torch.max and torch.min has it, the gradient goes to the first element of each row that has the
    value, or, where it is not `by_row` but of a whole tensor as one row, to all that have it in equal parts.
    """

    @staticmethod
    def forward(ctx, x, which, by_row):
        ctx.save_for_backward(x)
        ctx.which, ctx.by_row = which, by_row
        if which != "size":
            return (x.amax if which == "highest" else x.amin)(1, keepdim=True)
        return torch.maximum(-x.amin(1, keepdim=True), x.amax(1, keepdim=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        index = torch.from_numpy(_places(x.numpy(), ctx.which))
        value, grad_x = x.gather(1, index), torch.zeros_like(x)
        ends = {"size": (value.abs(), -value.abs())}.get(ctx.which, (value,))
        found = [] if ctx.by_row else [x.numpy() == end.item() for end in ends]
        count = sum(map(np.count_nonzero, found))
        share = grad * value.sign() if ctx.which == "size" else grad
        if ctx.by_row or count == 1:
            return grad_x.scatter_(1, index, share), None, None
        for place, end in zip(found, ends, strict=True):
            part = grad / count * end.sign() if ctx.which == "size" else grad / count
            grad_x.masked_fill_(torch.from_numpy(place), part.reshape(()))
        return grad_x, None, None


def _places(values: np.ndarray, which: str) -> np.ndarray:
    """Return where every row has its extreme first, (R, 1), by NumPy, which takes a tenth of torch's time."""
    highest = None if which == "lowest" else values.argmax(1, keepdims=True)
    lowest = None if which == "highest" else values.argmin(1, keepdims=True)
    if which != "size":
        return lowest if highest is None else highest
    high, low = (np.abs(np.take_along_axis(values, places, 1)) for places in (highest, lowest))
    return np.where(high == low, np.minimum(highest, lowest), np.where(high > low, highest, lowest))


def _kthvalue(x, k, *args, **kwargs):
    if args or kwargs or not x.is_cpu or x.dim() != 1 or not 1 <= k <= x.numel():
        return sys.modules["brevitas.utils.torch_utils"].kthvalue(x, k, *args, **kwargs)
    return _Kth.apply(x, k),


class _Kth(torch.autograd.Function):
    """kth lowest value of x, (N,), by NumPy's partition, which takes a tenth of torch's time; its element has the
    gradient. Of equal ones that is torch's choice, so that torch is asked where there are more."""

    @staticmethod
    def forward(ctx, x, k):
        values = x.detach().numpy()
        place = values == np.partition(values, k - 1)[k - 1]
        once = np.count_nonzero(place) == 1
        ctx.index, ctx.shape = place.argmax().item() if once else torch.kthvalue(x, k).indices.item(), x.shape
        return x[ctx.index].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grad_x = grad.new_zeros(ctx.shape)
        grad_x[ctx.index] = grad
        return grad_x, None
