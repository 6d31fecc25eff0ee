"""The optimizer and the learning rate that options name."""

import math

import torch
from torch import nn

from mbq_train.training.optimizers import parameter_groups

from ..options import Options


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


def rate_at(options: Options, *, step: int, steps: int) -> float:
    """Return the learning rate of step `step` out of `steps`, both over all epochs of a phase.

    cosine: from learning_rate to 0 (Loshchilov and Hutter, 2017, arXiv 1608.03983, eq. 5, one period); step: a tenth
    after each of rate_epochs, counted in options.epochs (the float phase falls at the same fractions); constant.
    """
    if options.rate == "cosine":
        return options.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
    passed = sum(step * options.epochs >= epoch * steps for epoch in options.rate_epochs)
    return options.learning_rate * 0.1**passed


def _rate_holder(options: Options, model: nn.Module):
    if not options.cuda_graph:
        return options.learning_rate
    return torch.tensor(options.learning_rate, device=next(model.parameters()).device)
