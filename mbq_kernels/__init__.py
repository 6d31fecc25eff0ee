"""Fused kernels for multi-bit quantization-aware training, bound into PyTorch autograd."""

from ._library import BackendError, backends, force_backend_from_environment, use_backend
from .ops.double_round import double_round
from .ops.fake_quantize import fake_quantize
from .ops.fake_quantize_affine import fake_quantize_affine
from .ops.fake_quantize_foreach import fake_quantize_foreach
from .ops.fake_quantize_multi import fake_quantize_multi

__version__ = "0.1.0"
__all__ = ["BackendError", "backends", "double_round", "fake_quantize", "fake_quantize_affine",
           "fake_quantize_foreach", "fake_quantize_multi", "use_backend"]

force_backend_from_environment()
