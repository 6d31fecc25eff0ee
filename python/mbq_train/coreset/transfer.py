"""How much bit-widths of one network have in common: angles between their gradients.

What Kim et al. (2025, arXiv 2510.20673) call implicit knowledge transfer; the measure as we read it.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..conversion.call_order import call_order
from ..quantize.bits import in_mode, switch_bits_of
from .gradient_forms import scored_layers


def gradient_angles(model: nn.Module, batches, bits) -> dict[str, torch.Tensor]:
    """Return angles in degrees between the gradients that bit-widths have in the same weight, for every layer.

    Args:
        model: what `convert` returned; scored in eval mode, .grad is not touched.
        batches: (images, labels, ...) tuples, such as those of a DataLoader; the losses are added over all.
        bits: K bit-widths, 32 for the float path.

    Returns {name of a layer: (K, K) float64 on the CPU}, in the order in which layers are called; 90 where a gradient
    is 0. Raises ValueError for no batches.
    """
    batches = [(batch[0], batch[1]) for batch in batches]
    if not batches:
        raise ValueError("gradient_angles: batches must hold images, got none")
    layers = {name: layer for layer, name in scored_layers(model).items() if layer.weight.requires_grad}
    names = call_order(model, layers, batches[0][0][:1])
    weights = [layers[name].weight for name in names]
    sums = {b: [torch.zeros_like(weight, dtype=torch.float64) for weight in weights] for b in bits}
    with in_mode(model, training=False):
        for b in bits:
            switch_bits_of(model, b)
            for images, labels in batches:
                loss = F.cross_entropy(model(images).float(), labels, reduction="sum")
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
                for total, gradient in zip(sums[b], gradients, strict=True):
                    total += 0 if gradient is None else gradient
    return {name: _angles(torch.stack([sums[b][i].flatten() for b in bits])) for i, name in enumerate(names)}


def _angles(gradients: torch.Tensor) -> torch.Tensor:
    unit = gradients / gradients.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    angles = torch.rad2deg((unit @ unit.T).clamp(-1, 1).acos()).cpu()
    own = gradients.norm(dim=1).cpu() > 0
    angles.diagonal()[own] = 0  # acos is steep there
    return angles
