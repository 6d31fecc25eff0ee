"""redirect: route the fake-quantize functions of torch and torchao to fused kernels, while a context lasts."""

import contextlib
import sys
import threading
import types
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode

from .torch_ao.functional import ROUTES
from .torchao_affine import torchao_affine

_TORCHAO = ("torchao.quantization.quant_primitives", "_fake_quantize_affine")
_depth = threading.local()
_lock = threading.Lock()
_originals: dict[types.FunctionType, types.FunctionType] = {}  # torchao's function -> one with its own code, for ever
_open: dict[types.FunctionType, int] = {}  # how many contexts are open


@contextlib.contextmanager
def redirect() -> Iterator[None]:
    """Route the functional fake-quantization of torch and torchao to fused kernels, in this thread, while it lasts.

    Routed are torch.fake_quantize_per_tensor_affine and _per_channel_affine, torch's two _fake_quantize_learnable ones,
    and torchao's _fake_quantize_affine with the functions that call it (_fake_quantize_per_channel_group and
    _per_token), under whatever name they were imported. Results and the gradients of x are the same bit for bit;
    gradients of a learned scale or zero point are sums that torch adds in another order. Calls that this cannot do (a
    dtype, a granularity, a value out of range) or that it would not make faster (small tensors) go through unchanged,
    as do traced ones of torchao.

    Contexts may be nested, and open in several threads at once; what an error leaves is as it was.
    """
    with _patched_torchao(), _Routes():
        _depth.value = getattr(_depth, "value", 0) + 1
        try:
            yield
        finally:
            _depth.value -= 1


class _Routes(TorchFunctionMode):
    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        return ROUTES.get(function, function)(*args, **kwargs or {})


@contextlib.contextmanager
def _patched_torchao() -> Iterator[None]:
    """Give torchao's function other code, because modules have imported the function itself by name."""
    function = getattr(sys.modules.get(_TORCHAO[0]), _TORCHAO[1], None)
    if not isinstance(function, types.FunctionType):
        yield
        return
    with _lock:
        if not _open.get(function):
            _originals[function] = types.FunctionType(function.__code__, function.__globals__, function.__name__,
                                                      function.__defaults__)
            function.__code__ = _trampoline.__code__
        _open[function] = _open.get(function, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _open[function] -= 1
            if not _open[function]:
                function.__code__ = _originals[function].__code__


def _trampoline(*args, **kwargs):
    """Stand in the place of torchao's code, and so see the names of torchao's module alone."""
    from mbq_train.drop_in.redirection import route_torchao
    return route_torchao(*args, **kwargs)


def route_torchao(*args, **kwargs) -> torch.Tensor:
    """Do what torchao's _fake_quantize_affine does."""
    original = _originals[getattr(sys.modules[_TORCHAO[0]], _TORCHAO[1])]
    if torch.compiler.is_compiling() or not getattr(_depth, "value", 0):
        return original(*args, **kwargs)
    return torchao_affine(original, *args, **kwargs)
