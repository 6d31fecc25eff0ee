"""From trained weights to stored codes, and from those to real values at a lower bit-width."""

import torch

LAYOUTS = ("codes", "planes")


@torch.no_grad()
def store_weight(weight: torch.Tensor, scale: torch.Tensor, *, high_bits: int, layout: str) -> torch.Tensor:
    """The codes of `weight` (C, ...) at `high_bits` bits: (C, K) int8, or (high_bits, C, ceil(K / 8)) uint8 planes.

    scale: (C,). The layouts are those that mbq_kernels.switched_linear takes.
    """
    codes = quantize(weight.flatten(1), scale, high_bits)
    return codes if layout == "codes" else to_planes(codes, high_bits)


@torch.no_grad()
def dequantize(store, scale, *, high_bits: int, bits: int, rounding: str, columns: int, out: torch.Tensor):
    """Write the weight at `bits` bits, code_l * scale * 2^(high_bits - bits), into `out` (C, columns); returns it."""
    codes = store if store.dtype == torch.int8 else from_planes(store, columns)
    lower = switch_bits(codes, high_bits, bits, rounding)
    return torch.mul(lower, (scale * 2.0 ** (high_bits - bits)).unsqueeze(1), out=out)


# To be replaced by mbq_kernels.quantize_codes, to_planes, from_planes and switch_bits, which do each in one pass.

def quantize(weight, scale, bits: int):
    top = 2 ** (bits - 1)
    return torch.round(torch.clamp(weight.float() / scale.float().unsqueeze(1), -top, top - 1)).to(torch.int8)


def to_planes(codes, bits: int):
    rows = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 8)).view(len(codes), -1, 8).to(torch.int16)
    places = torch.arange(8, device=codes.device)
    return torch.stack([(((rows >> p) & 1) << places).sum(-1).to(torch.uint8) for p in reversed(range(bits))])


def from_planes(planes, columns: int):
    places = torch.arange(8, dtype=torch.uint8, device=planes.device)
    bits = ((planes.unsqueeze(-1) >> places) & 1).flatten(2)[..., :columns].to(torch.int8)
    codes = -bits[0]
    for plane in bits[1:]:
        codes = codes * 2 + plane
    return codes


def switch_bits(codes, high_bits: int, bits: int, rounding: str):
    drop = high_bits - bits
    wide = codes.to(torch.int16)
    half = (1 << drop) >> 1
    nudge = half if rounding == "half_up" or drop == 0 else half - 1 + ((wide >> drop) & 1)
    return ((wide + nudge) >> drop).clamp(max=2 ** (bits - 1) - 1).to(torch.int8)
