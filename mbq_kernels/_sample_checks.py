"""Checks of what scores and gradient norms of samples are computed from: logits, activations, gradients."""

import torch

from ._checks import check_flag, check_float, check_pair, check_same_arithmetic, check_x, to_arithmetic


def check_logits(op: str, logits, targets, ignore_index) -> None:
    """Check rows of logits along the last axis, and the class of each."""
    check_x(op, logits, "logits")
    if not isinstance(targets, torch.Tensor):
        raise TypeError(f"{op}: targets must be a tensor, got {type(targets).__name__}")
    if targets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{op}: targets must be int64 or int32, got {targets.dtype}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"{op}: ignore_index must be an integer, got {ignore_index!r}")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{op}: logits must be (..., C) with at least one class, got shape {tuple(logits.shape)}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"{op}: targets must have the shape of logits without the classes, "
                         f"{tuple(logits.shape[:-1])}, got {tuple(targets.shape)}")
    if targets.device != logits.device:
        raise ValueError(f"{op}: targets must be on logits' device {logits.device}, got {targets.device}")


def check_samples(op: str, activations, grad_outputs, bias) -> None:
    """Check that activations and gradients of a batch of samples go together, whatever their shapes."""
    check_x(op, activations, "activations")
    check_x(op, grad_outputs, "grad_outputs")
    check_flag(op, "bias", bias)
    check_same_arithmetic(op, ("activations", "grad_outputs"), activations, grad_outputs)


def check_weight_factor(op: str, weight_factor, activations, shape: tuple):
    """Return the factor in the arithmetic's dtype, once its shape and device fit; None stays."""
    if weight_factor is None:
        return None
    check_float(op, "weight_factor", weight_factor)
    if weight_factor.device != activations.device:
        raise ValueError(f"{op}: weight_factor must be on activations' device {activations.device}, "
                         f"got {weight_factor.device}")
    if tuple(weight_factor.shape) != shape:
        raise ValueError(f"{op}: weight_factor must have the weight's shape {shape}, got {tuple(weight_factor.shape)}")
    return to_arithmetic(weight_factor.detach(), activations)


def check_normalized(op: str, normalized, grad_outputs, weight, bias) -> None:
    """Check what the norms of a normalization layer's gradients are computed from."""
    check_x(op, normalized, "normalized")
    check_x(op, grad_outputs, "grad_outputs")
    check_pair(op, ("normalized", "grad_outputs"), normalized, grad_outputs)
    check_same_arithmetic(op, ("normalized", "grad_outputs"), normalized, grad_outputs)
    check_flag(op, "weight", weight)
    check_flag(op, "bias", bias)
