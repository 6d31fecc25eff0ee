"""Fused kernels for multi-bit quantization-aware training, bound into PyTorch autograd."""

from ._library import BackendError, backends, choose_backends, use_backend
from .ops._function import recomputation
from .ops.correct_weight_bias import correct_weight_bias
from .ops.cross_entropy_el2n import cross_entropy_el2n
from .ops.dequantize_codes import dequantize_codes
from .ops.double_round import double_round
from .ops.el2n import el2n
from .ops.extract_lsb import extract_lsb
from .ops.fake_quantize import fake_quantize
from .ops.fake_quantize_affine import fake_quantize_affine
from .ops.fake_quantize_corrected import fake_quantize_corrected, fold_correction
from .ops.fake_quantize_dynamic import fake_quantize_dynamic
from .ops.fake_quantize_foreach import fake_quantize_foreach
from .ops.fake_quantize_multi import fake_quantize_multi
from .ops.lsb_penalty import lsb_penalty
from .ops.pack_codes import pack_codes, unpack_codes
from .ops.quantize_codes import quantize_codes
from .ops.round_clamp import round_clamp
from .ops.round_clamp_lsb import round_clamp_lsb
from .ops.round_clamp_lsb_foreach import round_clamp_lsb_foreach
from .ops.sample_grad_norm_batch_norm import sample_grad_norm_batch_norm
from .ops.sample_grad_norm_conv2d import sample_grad_norm_conv1d, sample_grad_norm_conv2d
from .ops.sample_grad_norm_embedding import sample_grad_norm_embedding
from .ops.sample_grad_norm_layer_norm import sample_grad_norm_layer_norm
from .ops.sample_grad_norm_linear import sample_grad_norm_linear
from .ops.switch_bits import switch_bits
from .ops.switched_linear import switched_linear
from .ops.to_planes import from_planes, to_planes

__version__ = "0.1.0"
__all__ = ["BackendError", "backends", "correct_weight_bias", "cross_entropy_el2n", "dequantize_codes", "double_round",
           "el2n", "extract_lsb", "fake_quantize", "fake_quantize_affine", "fake_quantize_corrected",
           "fake_quantize_dynamic", "fake_quantize_foreach", "fake_quantize_multi", "fold_correction", "from_planes",
           "lsb_penalty", "pack_codes", "quantize_codes", "recomputation", "round_clamp", "round_clamp_lsb",
           "round_clamp_lsb_foreach", "sample_grad_norm_batch_norm", "sample_grad_norm_conv1d",
           "sample_grad_norm_conv2d", "sample_grad_norm_embedding", "sample_grad_norm_layer_norm",
           "sample_grad_norm_linear", "switch_bits", "switched_linear", "to_planes", "unpack_codes", "use_backend"]

choose_backends()
