"""Thin layer for quantization-aware training at several bit-widths, on the kernels of mbq_kernels."""

from .allocation import (
    Allocation,
    allocate,
    hessian_costs,
    loss_costs,
    multiply_accumulates,
    other_allocations,
    pareto_allocations,
    tied_layers,
    trace_costs,
)
from .batches import Batch
from .checkpoint import CheckpointError, load_checkpoint, load_quantized, save_checkpoint
from .conversion.convert import convert, plan_conversion
from .conversion.make_transitional import make_transitional
from .conversion.plan import Conversion
from .coreset import CoresetSampler, GradNorms, GradNormScorer, draw_rows, score_images
from .deployment import deploy
from .drop_in import accelerate, redirect, restore
from .export import export_onnx, export_store
from .quantize.adaptation import adapt_bn
from .quantize.add_bits import add_bits
from .quantize.any_precision import AnyPrecision, AnyPrecisionActivation, AnyPrecisionWeight
from .quantize.attention import QuantMultiheadAttention
from .quantize.batch_norm import BitBatchNorm
from .quantize.bits import BitState, at_bits, get_bits, set_bits
from .quantize.double_rounding import DoubleRounding, DoubleRoundingQuantizer
from .quantize.dynamic import Dynamic, DynamicQuantizer
from .quantize.group_weights import GroupWeightQuantizer
from .quantize.layer_bits import own_layer_bits, set_layer_bits
from .quantize.layers import QuantConv1d, QuantConv2d, QuantLinear, QuantTransposedLinear
from .quantize.learned import ActivationQuantizer, Learned, WeightQuantizer
from .quantize.quantizer import BaseWeightQuantizer, Codes, Quantizer
from .quantize.round_clamp import RoundClamp, RoundClampQuantizer
from .quantize.saved import recompute_quantized
from .quantize.scales import clamp_scales, drop_idle_gradients, initialise, scales
from .quantize.specs import ActivationSpec, Float, WeightSpec
from .quantize.transitional_batch_norm import TransitionalBatchNorm, spread_batch_norms
from .quantize.weight_bank import WeightBank
from .sensitivity import Trace, hessian_traces, perturbations, sensitivities
from .training.distillation import SoftTargets
from .training.divergence import TrainingError
from .training.hasb import BitRoulette
from .training.optimizers import parameter_groups
from .training.scale_rates import ScaleRates
from .training.steps import Stepper

__all__ = [
    "ActivationQuantizer", "ActivationSpec", "Allocation", "AnyPrecision", "AnyPrecisionActivation",
    "AnyPrecisionWeight", "BaseWeightQuantizer", "Batch", "BitBatchNorm", "BitRoulette", "BitState", "CheckpointError",
    "Codes", "Conversion", "CoresetSampler", "DoubleRounding", "DoubleRoundingQuantizer", "Dynamic", "DynamicQuantizer",
    "Float", "GradNormScorer", "GradNorms", "GroupWeightQuantizer", "Learned", "QuantConv1d", "QuantConv2d",
    "QuantLinear", "QuantMultiheadAttention", "QuantTransposedLinear", "Quantizer", "RoundClamp", "RoundClampQuantizer",
    "ScaleRates", "SoftTargets", "Stepper", "Trace", "TrainingError", "TransitionalBatchNorm", "WeightBank",
    "WeightQuantizer", "WeightSpec", "accelerate", "adapt_bn", "add_bits", "allocate", "at_bits", "clamp_scales",
    "convert", "deploy", "draw_rows", "drop_idle_gradients", "export_onnx", "export_store", "get_bits", "hessian_costs",
    "hessian_traces", "initialise", "load_checkpoint", "load_quantized", "loss_costs", "make_transitional",
    "multiply_accumulates", "other_allocations", "own_layer_bits", "parameter_groups", "pareto_allocations",
    "perturbations", "plan_conversion", "recompute_quantized", "redirect", "restore", "save_checkpoint", "scales",
    "score_images", "sensitivities", "set_bits", "set_layer_bits", "spread_batch_norms", "tied_layers", "trace_costs",
]
