"""switched_linear in plain PyTorch: it writes the weight out in float32, which the kernels do not."""

import torch
import torch.nn.functional as F

from . import quant_math as qm
from ._channels import check_scale

NAME = "switched_linear"


def _lower_codes(store, in_features, high_bits, bits, half_up):
    """(N, in_features) int32 codes at `bits`, from int8 codes or from bit planes, all or the first of them"""
    if store.dtype == torch.int8:
        lo, hi = qm.bounds(high_bits, True)
        if store.device.type == "cpu" and store.numel() and not (lo <= store.min() and store.max() <= hi):
            raise RuntimeError(f"{NAME}: store must hold codes of {high_bits} bits, [{lo:g}, {hi:g}], got others")
        code = store.to(torch.int32).clamp(int(lo), int(hi))
        return qm.switch_code(code, qm.switching(high_bits, bits, not half_up))
    planes = store[:min(bits + 1, high_bits)] if half_up else store
    shifts = torch.arange(8, dtype=torch.uint8, device=store.device)
    rows = ((planes.unsqueeze(-1) >> shifts) & 1).flatten(2)[..., :in_features].to(torch.int32)
    code = -rows[0]  # two's complement: the first plane is the sign
    for row in rows[1:]:
        code = code * 2 + row
    return qm.switch_code(code, qm.switching(len(planes), bits, not half_up))


def _weight(store, scale, in_features, high_bits, bits, half_up):
    check_scale(NAME, scale)
    step = (scale * 2.0 ** (high_bits - bits)).reshape(-1, 1)
    return _lower_codes(store, in_features, high_bits, bits, half_up).float() * step


@torch.no_grad()
def switched_linear_forward(x, store, scale, bias, high_bits, bits, half_up):
    weight = _weight(store, scale, x.shape[1], high_bits, bits, half_up)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight, bias).to(x.dtype)


@torch.no_grad()
def switched_linear_backward(grad, store, scale, in_features, high_bits, bits, half_up):
    weight = _weight(store, scale, in_features, high_bits, bits, half_up)
    with torch.autocast(grad.device.type, enabled=False):
        return (grad.float() @ weight).to(grad.dtype)
