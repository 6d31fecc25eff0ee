"""Parameter groups of quantized networks, their learning rates, and an optimizer's state by name."""

import torch
from torch import nn

from ..quantize.batch_norm import NORMS
from ..quantize.quantizer import quantizers
from ..quantize.scales import scales


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
    twice = any(quantizer.switchable for quantizer in quantizers(model))
    undecayed = {id(parameter) for parameter in biases_and_norms(model)} if twice else set()
    groups = [{"params": [p for p in others if id(p) not in undecayed], "weight_decay": weight_decay},
              {"params": [p for p in others if id(p) in undecayed], "weight_decay": 0.0},
              {"params": learned, "weight_decay": 0.0, "rate_factor": scale_rate}]
    return [group for group in groups if group["params"]]


def biases_and_norms(model: nn.Module):
    """Yield the biases of all layers, and whatever normalization layers learn."""
    for module in model.modules():
        own = module.parameters(recurse=False) if isinstance(module, NORMS) else [getattr(module, "bias", None)]
        yield from (parameter for parameter in own if isinstance(parameter, nn.Parameter))


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
