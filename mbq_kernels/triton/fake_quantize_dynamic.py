"""fake_quantize_dynamic in Triton: a program reads its rows, whose extremes give their scales, and reads them again
from the cache where they are longer than a tile."""

import torch
import triton
import triton.language as tl

from ._elementwise import check_dtype
from ._tiling import OPTIONS
from .affine_math import affine_decode, affine_encode, dynamic_gradient, dynamic_range
from .quant_math import from_storage, to_storage

TILE = 2048  # elements at once: short rows share a program


@triton.jit
def _tile_of(rows, begin, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(row, which exist, offsets, mask)"""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = begin + tl.arange(0, BLOCK)
    return row, row < rows, row[:, None] * size + column[None, :], (row < rows)[:, None] & (column < size)[None, :]


@triton.jit
def dynamic_forward_kernel(x_ptr, out_ptr, scale_ptr, zero_point_ptr, rows, size, quant_min, quant_max, eps,
                           SYMMETRIC: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out = (clamp(rint(x * (1/scale)) + zp, quant_min, quant_max) - zp) * scale, scale and zp of the row's extremes"""
    least = tl.zeros((ROWS, BLOCK), tl.float32)
    greatest = tl.zeros((ROWS, BLOCK), tl.float32)
    odd = tl.zeros((ROWS, BLOCK), tl.int32)
    for step in range(STEPS):
        row, exists, offsets, mask = _tile_of(rows, step * BLOCK, size, ROWS, BLOCK)
        x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
        least = tl.where(x < least, x, least)
        greatest = tl.where(x > greatest, x, greatest)
        odd = tl.where(x != x, 1, odd)
    spoilt = tl.max(odd, axis=1) > 0
    low = tl.where(spoilt, float("nan"), tl.min(least, axis=1))
    high = tl.where(spoilt, float("nan"), tl.max(greatest, axis=1))
    scale, zp = dynamic_range(low, high, quant_min, quant_max, SYMMETRIC, eps, x_ptr.dtype.element_ty)
    row, exists, offsets, mask = _tile_of(rows, 0, size, ROWS, BLOCK)
    tl.store(scale_ptr + row, scale, mask=exists)
    tl.store(zero_point_ptr + row, zp, mask=exists)
    inv_scale = tl.div_rn(1.0, scale)
    for step in range(STEPS):
        row, exists, offsets, mask = _tile_of(rows, step * BLOCK, size, ROWS, BLOCK)
        x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
        level, kept = affine_encode(x, inv_scale[:, None], zp[:, None], quant_min, quant_max)
        value = affine_decode(kept, scale[:, None])
        tl.store(out_ptr + offsets, to_storage(value, out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def dynamic_backward_kernel(grad_ptr, x_ptr, grad_x_ptr, scale_ptr, zero_point_ptr, rows, size, quant_min, quant_max,
                            PRODUCT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """grad_x = grad where the code is inside, else 0; PRODUCT: (grad * scale) * (1/scale)"""
    row, exists, offsets, mask = _tile_of(rows, tl.program_id(1) * BLOCK, size, ROWS, BLOCK)
    scale = tl.load(scale_ptr + row, mask=exists, other=1.0)[:, None]
    zp = tl.load(zero_point_ptr + row, mask=exists, other=0.0)[:, None]
    x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
    grad = from_storage(tl.load(grad_ptr + offsets, mask=mask, other=0.0))
    value = dynamic_gradient(grad, x, scale, zp, quant_min, quant_max, PRODUCT)
    tl.store(grad_x_ptr + offsets, to_storage(value, grad_x_ptr.dtype.element_ty), mask=mask)


def _tiles(x):
    rows, size = x.shape
    block = min(TILE, triton.next_power_of_2(size))
    return {"rows": rows, "size": size, "ROWS": TILE // block if rows > 1 else 1, "BLOCK": block, **OPTIONS}


def fake_quantize_dynamic_forward(x, quant_min, quant_max, symmetric, eps):
    check_dtype(x)
    x = x.contiguous()
    x_hat, scale = torch.empty_like(x), x.new_empty(x.shape[0], dtype=torch.float32)
    zero_point, tiles = torch.empty_like(scale), _tiles(x)
    if x.numel():
        with torch.cuda.device_of(x):
            dynamic_forward_kernel[(triton.cdiv(tiles["rows"], tiles["ROWS"]),)](
                x_ptr=x, out_ptr=x_hat, scale_ptr=scale, zero_point_ptr=zero_point, quant_min=float(quant_min),
                quant_max=float(quant_max), eps=torch.tensor(eps, dtype=x.dtype).item(), SYMMETRIC=symmetric,
                STEPS=triton.cdiv(x.shape[1], tiles["BLOCK"]), **tiles)
    return x_hat, scale, zero_point


def fake_quantize_dynamic_backward(grad, x, scale, zero_point, quant_min, quant_max, product):
    check_dtype(x)
    x, tiles = x.contiguous(), _tiles(x)
    grad_x = torch.empty_like(x)
    if x.numel():
        grid = triton.cdiv(tiles["rows"], tiles["ROWS"]), triton.cdiv(x.shape[1], tiles["BLOCK"])
        with torch.cuda.device_of(x):
            dynamic_backward_kernel[grid](
                grad_ptr=grad.contiguous(), x_ptr=x, grad_x_ptr=grad_x, scale_ptr=scale.contiguous(),
                zero_point_ptr=zero_point.contiguous(), quant_min=float(quant_min), quant_max=float(quant_max),
                PRODUCT=product, **tiles)
    return grad_x
