"""Fused kernels for multi-bit quantization-aware training, bound into PyTorch autograd."""

from ._library import BackendError, backends, force_backend_from_environment, use_backend
from .ops.dequantize_codes import dequantize_codes
from .ops.double_round import double_round
from .ops.fake_quantize import fake_quantize
from .ops.fake_quantize_affine import fake_quantize_affine
from .ops.fake_quantize_foreach import fake_quantize_foreach
from .ops.fake_quantize_multi import fake_quantize_multi
from .ops.pack_codes import pack_codes, unpack_codes
from .ops.quantize_codes import quantize_codes
from .ops.sample_grad_norm_conv2d import sample_grad_norm_conv1d, sample_grad_norm_conv2d
from .ops.sample_grad_norm_linear import sample_grad_norm_linear
from .ops.switch_bits import switch_bits
from .ops.switched_linear import switched_linear
from .ops.to_planes import from_planes, to_planes

__version__ = "0.1.0"
__all__ = ["BackendError", "backends", "dequantize_codes", "double_round", "fake_quantize", "fake_quantize_affine",
           "fake_quantize_foreach", "fake_quantize_multi", "from_planes", "pack_codes", "quantize_codes",
           "sample_grad_norm_conv1d", "sample_grad_norm_conv2d", "sample_grad_norm_linear", "switch_bits",
           "switched_linear", "to_planes", "unpack_codes", "use_backend"]

force_backend_from_environment()
