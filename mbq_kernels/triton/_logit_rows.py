"""Rows of logits in Triton: a program reads its rows once, a tile at a time, and keeps their maximum and sums."""

import torch
import triton
import triton.language as tl

from ._tiling import OPTIONS
from .quant_math import from_storage, to_storage
from .softmax_math import class_gap, exponential, row_result, smoothed_loss, target_gap

TILE = 2048  # logits at once: rows of few classes share a program
OPTIONS = {**OPTIONS, "num_warps": 8}


@triton.jit
def _rows_of(targets_ptr, count, classes, ignore_index, ROWS: tl.constexpr):
    """(row, which exist, target or 0 where it is no class, which have one, which count)"""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets_ptr + row, mask=row < count, other=0).to(tl.int64)
    valid = (target >= 0) & (target < classes)
    return row, row < count, tl.where(valid, target, 0).to(tl.int32), valid, target != ignore_index


@triton.jit
def _tile_of(x_ptr, row, exists, begin, classes, BLOCK: tl.constexpr):
    """(logits with -inf outside, column, mask, offsets)"""
    column = begin + tl.arange(0, BLOCK)
    mask = exists[:, None] & (column < classes)[None, :]
    offsets = row.to(tl.int64)[:, None] * classes + column[None, :]
    return from_storage(tl.load(x_ptr + offsets, mask=mask, other=float("-inf"))), column, mask, offsets


@triton.jit
def logit_rows_forward_kernel(x_ptr, targets_ptr, loss_ptr, el2n_ptr, rows_ptr, count, units, ignore_index, smoothing,
                              UNIT: tl.constexpr, STEPS: tl.constexpr, SMOOTH: tl.constexpr, ROWS: tl.constexpr,
                              BLOCK: tl.constexpr):
    """loss and el2n of ROWS rows, and (top, log_sum) for the backward; loss_ptr None: el2n alone"""
    classes = units * UNIT  # known to be a multiple: rows begin on 16 bytes
    row, exists, target, valid, counts = _rows_of(targets_ptr, count, classes, ignore_index, ROWS)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total, squares, plain = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for step in range(STEPS):
        x, column, mask, offsets = _tile_of(x_ptr, row, exists, step * BLOCK, classes, BLOCK)
        others = tl.where(column[None, :] == target[:, None], float("-inf"), x)
        raised = tl.maximum(top, tl.max(others, axis=1))
        base = tl.where(raised == float("-inf"), 0.0, raised)
        ratio, e = exponential(top - base), exponential(others - base[:, None])
        total = total * ratio + tl.sum(e, axis=1)
        squares = squares * ratio * ratio + tl.sum(e * e, axis=1)
        top = raised
        if SMOOTH:
            plain += tl.sum(tl.where(mask, x, 0.0), axis=1)
    at = row.to(tl.int64) * classes + target
    logit = from_storage(tl.load(x_ptr + at, mask=exists, other=0.0))
    loss, el2n, top, log_sum = row_result(top, total, squares, logit)
    if SMOOTH:
        uniform = smoothing / classes
        loss = smoothed_loss(loss, top, log_sum, plain / classes, smoothing)
        of_target = target_gap(logit, top, log_sum, smoothing, uniform)
        squares = of_target * of_target
        for step in range(STEPS):
            x, column, mask, offsets = _tile_of(x_ptr, row, exists, step * BLOCK, classes, BLOCK)
            gap = class_gap(x, top[:, None], log_sum[:, None], uniform)
            squares += tl.sum(tl.where(mask & (column[None, :] != target[:, None]), gap * gap, 0.0), axis=1)
        el2n = tl.sqrt(squares)
    missing = float("nan")  # of a target that is no class
    tl.store(el2n_ptr + row, tl.where(counts, tl.where(valid, el2n, missing), 0.0), mask=exists)
    if loss_ptr is not None:
        tl.store(loss_ptr + row, tl.where(counts, tl.where(valid, loss, missing), 0.0), mask=exists)
        tl.store(rows_ptr + 2 * row, top, mask=exists)
        tl.store(rows_ptr + 2 * row + 1, tl.where(valid, log_sum, missing), mask=exists)


@triton.jit
def logit_rows_backward_kernel(grad_ptr, x_ptr, targets_ptr, rows_ptr, grad_x_ptr, count, units, ignore_index,
                               smoothing, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """grad_x = (p - q) * grad"""
    classes = units * UNIT
    row, exists, target, valid, counts = _rows_of(targets_ptr, count, classes, ignore_index, ROWS)
    x, column, mask, offsets = _tile_of(x_ptr, row, exists, tl.program_id(1) * BLOCK, classes, BLOCK)
    top = tl.load(rows_ptr + 2 * row, mask=exists, other=0.0)
    log_sum = tl.load(rows_ptr + 2 * row + 1, mask=exists, other=0.0)
    grad = tl.load(grad_ptr + row, mask=exists, other=0.0)
    logit = from_storage(tl.load(x_ptr + row.to(tl.int64) * classes + target, mask=exists, other=0.0))
    uniform = smoothing / classes
    of_target = target_gap(logit, top, log_sum, smoothing, uniform)
    gap = tl.where(column[None, :] == target[:, None], of_target[:, None],
                   class_gap(x, top[:, None], log_sum[:, None], uniform))
    value = tl.where(counts[:, None], gap * grad[:, None], 0.0)
    tl.store(grad_x_ptr + offsets, to_storage(value, grad_x_ptr.dtype.element_ty), mask=mask)


def _arguments(op, logits, targets):
    if logits.dtype == torch.float64:
        raise TypeError(f"{op}: logits must be float32, bfloat16 or float16 for Triton kernels, got torch.float64")
    count, classes = logits.shape
    unit = next(unit for unit in (16, 8, 4, 2, 1) if classes % unit == 0)
    block = min(TILE, triton.next_power_of_2(classes))
    return {"x_ptr": logits.contiguous(), "targets_ptr": targets.contiguous(), "count": count, "units": classes // unit,
            "UNIT": unit, "ROWS": TILE // block if count > 1 else 1, "BLOCK": block, **OPTIONS}


def forward(op, logits, targets, ignore_index, smoothing, with_loss: bool):
    """(loss, el2n, rows); without the loss, el2n alone has elements"""
    arguments = _arguments(op, logits, targets)
    count = logits.shape[0]
    el2n = logits.new_empty(count, dtype=torch.float32)
    loss = torch.empty_like(el2n) if with_loss else None
    rows = el2n.new_empty(count, 2) if with_loss else None
    if count:
        with torch.cuda.device_of(logits):
            logit_rows_forward_kernel[(triton.cdiv(count, arguments["ROWS"]),)](
                loss_ptr=loss, el2n_ptr=el2n, rows_ptr=rows, ignore_index=ignore_index, smoothing=smoothing,
                STEPS=triton.cdiv(logits.shape[1], arguments["BLOCK"]),
                SMOOTH=smoothing > 0, **arguments)
    return loss, el2n, rows


def backward(op, grad, logits, targets, rows, ignore_index, smoothing):
    arguments = _arguments(op, logits, targets)
    grad_x = logits.new_empty(logits.shape)
    if logits.numel():
        grid = triton.cdiv(logits.shape[0], arguments["ROWS"]), triton.cdiv(logits.shape[1], arguments["BLOCK"])
        with torch.cuda.device_of(logits):
            logit_rows_backward_kernel[grid](
                grad_ptr=grad.contiguous(), rows_ptr=rows.contiguous(), grad_x_ptr=grad_x, ignore_index=ignore_index,
                smoothing=smoothing, **arguments)
    return grad_x
