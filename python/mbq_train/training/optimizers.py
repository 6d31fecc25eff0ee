"""Optimizers for quantized networks: scales without weight decay, a learning rate that is a function of the step."""

import math

import torch
from torch import nn

from ..options import Options
from ..quantize.batch_norm import NORMS
from ..quantize.double_rounding import DoubleRoundingQuantizer
from ..quantize.quantizers import quantizers
from ..quantize.scales import scales


def build_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return the optimizer `options` names, over `parameter_groups`; ready for capture where options ask for a CUDA
    graph."""
    groups = parameter_groups(model, options.weight_decay, options.scale_rate)
    for group in groups:  # each its own: a tensor that groups share has one value
        group["lr"] = _rate_holder(options, model)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[options.optimizer]
    return kind(groups, capturable=options.cuda_graph)


def parameter_groups(model: nn.Module, weight_decay: float, scale_rate: float = 1.0) -> list[dict]:
    """Return parameter groups for a torch optimizer.

    Scales and offsets get no weight decay. Where weights are rounded twice, biases and the parameters of normalization
    layers get none either, as in the public code of Huang et al., 2025, arXiv 2502.01199.

    Args:
        model: what `convert` returned, or a float network.
        weight_decay: of all other parameters.
        scale_rate: what `set_rate` multiplies the learning rate of scales and offsets by; their group holds it as
            "rate_factor".
    """
    learned = scales(model)
    ids = {id(parameter) for parameter in learned}
    others = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    twice = any(isinstance(quantizer, DoubleRoundingQuantizer) for quantizer in quantizers(model))
    undecayed = {id(parameter) for parameter in _biases_and_norms(model)} if twice else set()
    groups = [{"params": [p for p in others if id(p) not in undecayed], "weight_decay": weight_decay},
              {"params": [p for p in others if id(p) in undecayed], "weight_decay": 0.0},
              {"params": learned, "weight_decay": 0.0, "rate_factor": scale_rate}]
    return [group for group in groups if group["params"]]


def _biases_and_norms(model: nn.Module):
    """Yield the biases of all layers, and whatever normalization layers learn."""
    for module in model.modules():
        own = module.parameters(recurse=False) if isinstance(module, NORMS) else [getattr(module, "bias", None)]
        yield from (parameter for parameter in own if isinstance(parameter, nn.Parameter))


def rate_at(options: Options, *, step: int, steps: int) -> float:
    """Return the learning rate of step `step` out of `steps`, both over all epochs of a phase.

    cosine: from learning_rate to 0 (Loshchilov and Hutter, 2017, arXiv 1608.03983, eq. 5, one period); step: a tenth
    after each of rate_epochs, counted in options.epochs (the float phase falls at the same fractions); constant.
    """
    if options.rate == "cosine":
        return options.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
    passed = sum(step * options.epochs >= epoch * steps for epoch in options.rate_epochs)
    return options.learning_rate * 0.1**passed


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times its rate_factor; in place where a captured graph reads it."""
    for group in optimizer.param_groups:
        own = rate * group.get("rate_factor", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimizer's state by name, `<parameter>:<key>`."""
    return {f"{name}:{key}": torch.as_tensor(value) for name, parameter in model.named_parameters()
            for key, value in optimizer.state.get(parameter, {}).items() if value is not None}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict) -> None:
    """Put back what `optimizer_tensors` gave. Raises ValueError for the name of a parameter that is not there."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(":")
        if parameter not in parameters:
            raise ValueError(f"load_optimizer_tensors: tensors must belong to parameters of {type(model).__name__}, "
                             f"got {parameter}")
        on_cpu = key == "step" and not optimizer.defaults.get("capturable")
        device = "cpu" if on_cpu else parameters[parameter].device
        optimizer.state[parameters[parameter]][key] = tensor.to(device, copy=True)


def _rate_holder(options: Options, model: nn.Module):
    if not options.cuda_graph:
        return options.learning_rate
    return torch.tensor(options.learning_rate, device=next(model.parameters()).device)
