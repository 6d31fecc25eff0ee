"""double_round in plain PyTorch."""

import torch

from . import quant_math as qm
from ._channels import channel_size, channel_sum, check_scale, per_channel, per_unit, widen


def _codes(x, scale, high_bits, b, half_up):
    """Return (v at b bits, its code, the second rounding)

    Codes of high_bits above hi ratio all become hi, so that one clamp, before the first rounding, does for both.
    """
    again = ratio, inv_ratio, _ = qm.second_rounding(2.0 ** (high_bits - b), half_up)
    v, (lo, hi) = qm.scaled(x, scale, 0), qm.bounds(b, True)
    code = qm.second_encode(qm.encode(v, lo * ratio, hi * ratio), again)
    return v * inv_ratio, code, again


@torch.no_grad()
def double_round_forward(x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up, out_dtype):
    scale = check_scale("double_round", scale, scale_unit, scale_floor)
    wide, scale_, outs = widen(x), per_channel(scale, x, axis), []
    for b in bits:
        _, code, again = _codes(wide, scale_, high_bits, b, half_up)
        outs.append(torch.empty_like(x, dtype=out_dtype or x.dtype).copy_(qm.double_decode(code, again, scale_)))
    return outs


@torch.no_grad()
def double_round_backward(grads, x, scale, scale_unit, scale_floor, high_bits, bits, axis, half_up, grad_factor,
                          scale_chain):
    scale = check_scale("double_round", scale, scale_unit, scale_floor)
    wide, scale_ = widen(x), per_channel(scale, x, axis)
    total, grad_scale = torch.zeros_like(wide), torch.zeros_like(scale, dtype=torch.float64)
    for grad, b in zip(grads, bits, strict=True):
        lo, hi = qm.bounds(b, True)
        v, code, again = _codes(wide, scale_, high_bits, b, half_up)
        grad_x, to_scale, _ = qm.gradient_terms(widen(grad), v, code, lo, hi)
        factor = qm.default_grad_factor(channel_size(x, axis), hi) if grad_factor is None else grad_factor
        total += grad_x
        grad_scale += channel_sum(to_scale, grad_scale, axis, factor * (again[0] if scale_chain else 1))
    return torch.empty_like(x).copy_(total), per_unit(grad_scale, scale_unit).to(scale.dtype)
