"""Fused kernels for multi-bit quantization-aware training, bound into PyTorch autograd."""

from ._library import BackendError, backends, force_backend_from_environment, use_backend
from .ops.dequantize_codes import dequantize_codes
from .ops.double_round import double_round
from .ops.extract_lsb import extract_lsb
from .ops.fake_quantize import fake_quantize
from .ops.fake_quantize_affine import fake_quantize_affine
from .ops.fake_quantize_foreach import fake_quantize_foreach
from .ops.fake_quantize_multi import fake_quantize_multi
from .ops.lsb_penalty import lsb_penalty
from .ops.pack_codes import pack_codes, unpack_codes
from .ops.quantize_codes import quantize_codes
from .ops.round_clamp import round_clamp
from .ops.round_clamp_lsb import round_clamp_lsb
from .ops.round_clamp_lsb_foreach import round_clamp_lsb_foreach
from .ops.switch_bits import switch_bits
from .ops.switched_linear import switched_linear
from .ops.to_planes import from_planes, to_planes

__version__ = "0.1.0"
__all__ = ["BackendError", "backends", "dequantize_codes", "double_round", "extract_lsb", "fake_quantize",
           "fake_quantize_affine", "fake_quantize_foreach", "fake_quantize_multi", "from_planes", "lsb_penalty",
           "pack_codes", "quantize_codes", "round_clamp", "round_clamp_lsb", "round_clamp_lsb_foreach", "switch_bits",
           "switched_linear", "to_planes", "unpack_codes", "use_backend"]

force_backend_from_environment()
