"""Norms of the gradients of y = weight * x_hat + bias in Triton: sums over positions, squared per channel."""

import torch
import triton
import triton.language as tl

from ._tiling import OPTIONS
from .quant_math import from_storage

ALONG = {True: (1, 1024), False: (256, 4)}  # (channels, positions) of a tile: positions or channels lie side by side


@triton.jit
def affine_norms_kernel(x_ptr, grad_ptr, parts_ptr, width, positions, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
                        POSITIONS_LAST: tl.constexpr, STEPS: tl.constexpr, BLOCK_C: tl.constexpr,
                        BLOCK_P: tl.constexpr):
    """parts[n, tile of the `width` channels] = sum over the tile of (sum_p g x_hat)^2 + (sum_p g)^2"""
    tiles = tl.cdiv(width, BLOCK_C)
    sample, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    channel = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    with_x, alone = tl.zeros((BLOCK_C,), tl.float64), tl.zeros((BLOCK_C,), tl.float64)
    for step in range(STEPS):
        position = step * BLOCK_P + tl.arange(0, BLOCK_P)
        mask = (channel < width)[:, None] & (position < positions)[None, :]
        if POSITIONS_LAST:
            offsets = channel.to(tl.int64)[:, None] * positions + position[None, :]
        else:
            offsets = position.to(tl.int64)[None, :] * width + channel[:, None]
        at = sample * width * positions + offsets
        grad = from_storage(tl.load(grad_ptr + at, mask=mask, other=0.0)).to(tl.float64)
        if WEIGHT:
            with_x += tl.sum(grad * from_storage(tl.load(x_ptr + at, mask=mask, other=0.0)).to(tl.float64), axis=1)
        if BIAS:
            alone += tl.sum(grad, axis=1)
    total = tl.sum(with_x * with_x + alone * alone, axis=0)
    tl.store(parts_ptr + tl.program_id(0), total)


def squared_norms(op, normalized, grad_outputs, weight, bias, positions_last: bool):
    """Of (N, C, P) if positions are last, else (N, P, C)."""
    if grad_outputs.dtype == torch.float64:
        raise TypeError(f"{op}: grad_outputs must be float32, bfloat16 or float16 for Triton kernels, "
                        "got torch.float64")
    samples, channels, positions = (grad_outputs.shape if positions_last
                                    else (grad_outputs.shape[0], grad_outputs.shape[2], grad_outputs.shape[1]))
    block_c, block_p = ALONG[positions_last]
    tiles = triton.cdiv(channels, block_c)
    if grad_outputs.numel() == 0 or not (weight or bias):
        return grad_outputs.new_zeros(samples, dtype=torch.float32)
    parts = torch.empty(samples, tiles, dtype=torch.float64, device=grad_outputs.device)
    with torch.cuda.device_of(grad_outputs):
        affine_norms_kernel[(samples * tiles,)](
            x_ptr=normalized.contiguous(), grad_ptr=grad_outputs.contiguous(), parts_ptr=parts, width=channels,
            positions=positions, WEIGHT=weight, BIAS=bias, POSITIONS_LAST=positions_last,
            STEPS=triton.cdiv(positions, block_p), BLOCK_C=block_c, BLOCK_P=block_p, **OPTIONS)
    return parts.sum(1).float()
