"""From trained weights to stored codes, and from those to real values at a lower bit-width."""

import torch

import mbq_kernels

LAYOUTS = ("codes", "planes")


@torch.no_grad()
def store_weight(weight: torch.Tensor, scale: torch.Tensor, *, high_bits: int, layout: str) -> torch.Tensor:
    """Return the codes of `weight` (C, ...) at `high_bits` bits: (C, K) int8, or (high_bits, C, ceil(K / 8)) uint8
    planes.

    scale: (C,). The layouts are those that mbq_kernels.switched_linear takes.
    """
    codes = mbq_kernels.quantize_codes(weight.flatten(1), scale, bits=high_bits, axis=0)
    return codes if layout == "codes" else mbq_kernels.to_planes(codes, bits=high_bits)


@torch.no_grad()
def dequantize(store, scale, *, high_bits: int, bits: int, rounding: str, columns: int, out: torch.Tensor):
    """Write the weight at `bits` bits, code_l * 2^(high_bits - bits) * scale, into `out` (C, columns); returns it."""
    if store.dtype == torch.int8:
        lower = mbq_kernels.switch_bits(store, from_bits=high_bits, to_bits=bits, rounding=rounding)
    else:
        lower = mbq_kernels.from_planes(store, high_bits=high_bits, bits=bits, rounding=rounding,
                                        shape=(store.shape[1], columns))
    return torch.mul(lower, (scale * 2.0 ** (high_bits - bits)).unsqueeze(1), out=out)
