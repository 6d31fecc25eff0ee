"""Thin layer for quantization-aware training at several bit-widths, on the kernels of mbq_kernels."""

from .batch_norm import BitBatchNorm
from .bits import BitState, set_bits
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .convert import convert
from .data import Data, load_data
from .layers import QuantConv2d, QuantLinear
from .models import build_model
from .profile import QuantizationTime, quantization_time
from .quantizers import ActivationQuantizer, WeightQuantizer, clamp_scales
from .run import Options, Result, evaluate_run, train_run
from .training import TrainingError, evaluate, parameter_groups, train

__all__ = [
    "ActivationQuantizer", "BitBatchNorm", "BitState", "CheckpointError", "Data", "Options", "QuantConv2d",
    "QuantLinear", "QuantizationTime", "Result", "TrainingError", "WeightQuantizer", "build_model", "clamp_scales",
    "convert", "evaluate", "evaluate_run", "load_checkpoint", "load_data", "parameter_groups", "quantization_time",
    "save_checkpoint", "set_bits", "train", "train_run",
]
