"""correct_weight_bias in plain PyTorch."""

import torch

from ._channels import channel_size, channel_sum, per_channel, widen
from ._correction import correction_rows, moments


@torch.no_grad()
def correct_weight_bias_forward(w_quant, w_ref, axis, eps):
    wide = widen(w_quant)
    rows = correction_rows(moments(wide, axis), moments(w_ref, axis), eps, wide.dtype)
    value = (wide - per_channel(rows[1], wide, axis)) * per_channel(rows[0], wide, axis)
    return torch.empty_like(w_quant).copy_(value + per_channel(rows[2], wide, axis)), rows


@torch.no_grad()
def correct_weight_bias_backward(grad, w_quant, w_ref, rows, axis, eps):
    """Through the statistics too: d y / d w_quant = factor (I - 1/n - z z^T / (n - 1)), z the normalised w_quant"""
    g, quant, ref = (widen(t).double() for t in (grad, w_quant, w_ref))
    factor, centre, _, quant_sd, ref_mean, ref_sd = rows.double()
    count, one = channel_size(w_quant, axis), torch.ones_like(factor)
    mean_grad = channel_sum(g, one, axis, 1 / max(count, 1))
    spread = channel_sum(g * (quant - per_channel(centre, g, axis)), one, axis, 1 / max(count - 1, 1))
    along_quant = torch.where(factor == 0, 0, factor * spread / (quant_sd * (quant_sd + eps)))
    along_ref = torch.where((factor == 0) | (ref_sd == 0), 0, spread / (ref_sd * (quant_sd + eps)))
    terms = (per_channel(row, g, axis) for row in (factor, factor * mean_grad, along_quant, centre, mean_grad,
                                                   along_ref, ref_mean))
    factor, mean_part, along_quant, centre, mean_grad, along_ref, ref_mean = terms
    to_quant = factor * g - mean_part - along_quant * (quant - centre)
    return torch.empty_like(w_quant).copy_(to_quant), torch.empty_like(w_ref).copy_(
        mean_grad + along_ref * (ref - ref_mean))
