"""sample_grad_norm_embedding in Triton: positions in the order of their indices, equal ones together."""

import torch
import triton
import triton.language as tl

from ._tiling import OPTIONS
from .quant_math import from_storage

BLOCK_D = 256


@triton.jit
def embedding_norms_kernel(order_ptr, ends_ptr, grad_ptr, parts_ptr, width, POSITIONS: tl.constexpr,
                           BLOCK_D: tl.constexpr):
    """parts[n, tile of D]: gradients are added until the index ends, then squared"""
    tiles = tl.cdiv(width, BLOCK_D)
    sample, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    column = tile * BLOCK_D + tl.arange(0, BLOCK_D)
    row, norms = tl.zeros((BLOCK_D,), tl.float64), tl.zeros((BLOCK_D,), tl.float64)
    for t in range(POSITIONS):
        position = tl.load(order_ptr + sample * POSITIONS + t)
        state = tl.load(ends_ptr + sample * POSITIONS + t)  # 0: more to come, 1: the last one of its index, 2: padding
        at = grad_ptr + (sample * POSITIONS + position) * width + column
        grad = from_storage(tl.load(at, mask=(column < width) & (state < 2), other=0.0))
        row += grad.to(tl.float64)
        norms += tl.where(state == 1, row * row, 0.0)
        row = tl.where(state == 0, row, 0.0)
    tl.store(parts_ptr + tl.program_id(0), tl.sum(norms, axis=0))


def sample_grad_norm_embedding_forward(indices, grad_outputs, padding_idx):
    if grad_outputs.dtype == torch.float64:
        raise TypeError("sample_grad_norm_embedding: grad_outputs must be float32, bfloat16 or float16 for Triton "
                        "kernels, got torch.float64")
    samples, positions, width = grad_outputs.shape
    if grad_outputs.numel() == 0:
        return grad_outputs.new_zeros(samples, dtype=torch.float32)
    ordered, order = indices.sort(dim=1, stable=True)
    ends = torch.ones_like(ordered, dtype=torch.int32)
    ends[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    if padding_idx is not None:
        ends.masked_fill_(ordered == padding_idx, 2)
    tiles = triton.cdiv(width, BLOCK_D)
    parts = torch.empty(samples, tiles, dtype=torch.float64, device=grad_outputs.device)
    with torch.cuda.device_of(grad_outputs):
        embedding_norms_kernel[(samples * tiles,)](
            order_ptr=order, ends_ptr=ends, grad_ptr=grad_outputs.contiguous(), parts_ptr=parts, width=width,
            POSITIONS=positions, BLOCK_D=BLOCK_D, **OPTIONS)
    return parts.sum(1).float()
