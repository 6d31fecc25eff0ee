"""correct_weight_bias in plain PyTorch."""

import torch

from ._channels import per_channel, widen
from ._correction import correction_rows, moments


@torch.no_grad()
def correct_weight_bias_forward(w_quant, w_ref, axis, eps):
    wide = widen(w_quant)
    rows = correction_rows(moments(wide, axis), moments(w_ref, axis), eps, wide.dtype)
    value = (wide - per_channel(rows[1], wide, axis)) * per_channel(rows[0], wide, axis)
    return torch.empty_like(w_quant).copy_(value + per_channel(rows[2], wide, axis)), rows
