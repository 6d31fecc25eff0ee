"""Thin layer for quantization-aware training at several bit-widths, on the kernels of mbq_kernels."""

from .conversion.convert import convert, plan_conversion
from .conversion.plan import Conversion
from .coreset import CoresetSampler, GradNorms, GradNormScorer, draw_rows, score_images
from .data import Batch, Data, DataError, load_data
from .deployment import deploy
from .export import export_onnx, export_store
from .models import Decoder, build_model
from .options import Options
from .quantize.adaptation import adapt_bn
from .quantize.any_precision import AnyPrecisionActivation, AnyPrecisionWeight
from .quantize.attention import QuantMultiheadAttention
from .quantize.batch_norm import BitBatchNorm
from .quantize.bits import BitState, at_bits, get_bits, set_bits
from .quantize.double_rounding import DoubleRoundingQuantizer
from .quantize.layers import QuantConv1d, QuantConv2d, QuantLinear, QuantTransposedLinear
from .quantize.quantizers import ActivationQuantizer, WeightQuantizer
from .quantize.round_clamp import RoundClampQuantizer, own_layer_bits, set_layer_bits
from .quantize.scales import clamp_scales, drop_idle_gradients, initialise, scales
from .quantize.untrained import add_bits
from .quantize.weight_bank import WeightBank
from .runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .runs.evaluate import Evaluation, dry_run, evaluate_run
from .runs.profile import QuantizationTime, quantization_time
from .runs.run import Result, resume_run, train_run
from .runs.sensitivity import Sensitivities, sensitivity_of_run
from .sensitivity import Trace, hessian_traces, perturbations, sensitivities
from .training.divergence import TrainingError
from .training.interrupt import Interrupted
from .training.loop import State, Training, evaluate
from .training.optimizers import parameter_groups

__all__ = [
    "ActivationQuantizer", "AnyPrecisionActivation", "AnyPrecisionWeight", "Batch", "BitBatchNorm", "BitState",
    "CheckpointError", "Conversion", "CoresetSampler", "Data", "DataError", "Decoder", "DoubleRoundingQuantizer",
    "Evaluation", "GradNormScorer", "GradNorms", "Interrupted", "Options", "QuantConv1d", "QuantConv2d", "QuantLinear",
    "QuantMultiheadAttention", "QuantTransposedLinear", "QuantizationTime", "Result", "RoundClampQuantizer",
    "Sensitivities", "State", "Trace", "Training", "TrainingError", "WeightBank", "WeightQuantizer", "adapt_bn",
    "add_bits", "at_bits", "build_model", "clamp_scales", "convert", "deploy", "draw_rows", "drop_idle_gradients",
    "dry_run", "evaluate", "evaluate_run", "export_onnx", "export_store", "get_bits", "hessian_traces", "initialise",
    "load_checkpoint", "load_data", "own_layer_bits", "parameter_groups", "perturbations", "plan_conversion",
    "quantization_time", "resume_run", "save_checkpoint", "scales", "score_images", "sensitivities",
    "sensitivity_of_run", "set_bits", "set_layer_bits", "train_run",
]
