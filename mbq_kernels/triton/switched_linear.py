"""switched_linear in Triton: y = x @ x_hat.T + bias straight from int8 codes or bit planes, and the gradient of x.

One row of x multiplies in float32, more go through tensor cores. Long rows are split among programs whose sums a second
kernel adds in order: no atomics.
"""

import torch
import triton
import triton.language as tl

from ._exact_dot import exact_dot
from ._stored_codes import codes_at, float_of, levels_of_codes, levels_of_planes
from ._tiling import OPTIONS
from .quant_math import INTERPRETED, from_storage, to_storage

PROGRAMS = 512  # wanted at least, by splitting rows
# (rows, words) of a tile of codes or planes, for one row of x or more
TILES = {("codes", False): (8, 512), ("codes", True): (64, 32), ("planes", False): (16, 32), ("planes", True): (32, 16)}
STAGES = {"codes": 3, "planes": 1}  # more would spill planes
GRADIENT_TILE = {"BLOCK_K": 32, "BLOCK_N": 32, "BLOCK_M": 16}
GRADIENT_OPTIONS = {**OPTIONS, "num_stages": 1}


@triton.jit
def _add_products(acc, levels, x_ptr, m, word, count, first, WORDS: tl.constexpr, STEP: tl.constexpr,
                  PER_WORD: tl.constexpr, BYTES: tl.constexpr, BITS: tl.constexpr, DOT: tl.constexpr):
    """acc + the products of x with the codes in `levels`: of every word the columns first, first + STEP, ..."""
    for byte in tl.static_range(BYTES):
        if STEP > 1 and byte == 0:
            tl.debug_barrier()  # or the loads of all columns come together, and registers spill
        code = float_of(levels, byte, BITS)
        at = x_ptr + (first + STEP * byte) * WORDS + word
        if DOT:
            x = tl.load(at[:, None] + m.to(tl.int64)[None, :] * PER_WORD * WORDS,
                        mask=(m < count)[None, :] & (word < WORDS)[:, None], other=0.0)
            acc = exact_dot(code, from_storage(x) if INTERPRETED else x, acc)
        else:
            x = from_storage(tl.load(at, mask=word < WORDS, other=0.0))
            acc = tl.fma(code, tl.broadcast_to(x[None, :], code.shape), acc)
    return acc


@triton.jit
def _store_result(y_ptr, scale_ptr, bias_ptr, total, n, m, outputs, count, DROP: tl.constexpr, ONE_SCALE: tl.constexpr):
    """y = total * scale * 2^DROP + bias; total (n, m)"""
    scale = tl.load(scale_ptr + (n * 0 if ONE_SCALE else n), mask=n < outputs, other=0.0) * 2.0 ** DROP
    y = total * scale[:, None]
    if bias_ptr is not None:
        y = y + tl.load(bias_ptr + n, mask=n < outputs, other=0.0)[:, None]
    tl.store(y_ptr + m.to(tl.int64)[None, :] * outputs + n[:, None], to_storage(y, y_ptr.dtype.element_ty),
             mask=(n < outputs)[:, None] & (m < count)[None, :])


@triton.jit
def switched_linear_forward_kernel(
        x_ptr, store_ptr, scale_ptr, bias_ptr, y_ptr, sums_ptr, count, outputs,
        WORDS: tl.constexpr, STEPS: tl.constexpr, PLANES: tl.constexpr, BYTES: tl.constexpr,
        HIGH_BITS: tl.constexpr, BITS: tl.constexpr, HALF_UP: tl.constexpr, ONE_SCALE: tl.constexpr,
        BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_M: tl.constexpr):
    """y, or where rows are split the sums (split, n, m) that finish_kernel turns into it; PLANES 0: codes

    x: (count, columns of a word, words), so that a load has the same column of neighbouring words.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    DOT: tl.constexpr = BLOCK_M > 1
    acc = tl.zeros((BLOCK_N, BLOCK_M if DOT else BLOCK_W), tl.float32)
    for step in range(STEPS):
        word = (tl.program_id(1) * STEPS + step) * BLOCK_W + tl.arange(0, BLOCK_W)
        at = store_ptr + n.to(tl.int64)[:, None] * WORDS + word[None, :]
        mask = (n < outputs)[:, None] & (word < WORDS)[None, :]
        if PLANES == 0:
            codes = tl.load(at, mask=mask, other=0).to(tl.uint32)
            levels = levels_of_codes(codes, HIGH_BITS, BITS, HALF_UP)
            acc = _add_products(acc, levels, x_ptr, m, word, count, 0, WORDS, 1, BYTES, BYTES, BITS, DOT)
        else:
            planes = ()
            for p in tl.static_range(PLANES):
                planes = planes + (tl.load(at + p * tl.cast(outputs, tl.int64) * WORDS, mask=mask,
                                           other=0).to(tl.uint32),)
            levels = levels_of_planes(planes, BITS, HALF_UP)
            for j in tl.static_range(8):
                acc = _add_products(acc, levels[j], x_ptr, m, word, count, j, WORDS, 8, 8 * BYTES, BYTES, BITS, DOT)
    total = acc if DOT else tl.sum(acc, axis=1)[:, None]
    if sums_ptr is None:
        _store_result(y_ptr, scale_ptr, bias_ptr, total, n, m, outputs, count, HIGH_BITS - BITS, ONE_SCALE)
    else:
        at = (tl.program_id(1).to(tl.int64) * outputs + n[:, None]) * count + m[None, :]
        tl.store(sums_ptr + at, total, mask=(n < outputs)[:, None] & (m < count)[None, :])


@triton.jit
def switched_linear_backward_kernel(
        grad_ptr, store_ptr, scale_ptr, grad_x_ptr, count, outputs, columns, row_bytes, STEPS: tl.constexpr,
        PLANES: tl.constexpr, HIGH_BITS: tl.constexpr, BITS: tl.constexpr, HALF_UP: tl.constexpr,
        ONE_SCALE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """grad_x = (grad * scale * 2^D) @ codes, in float32"""
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_K, BLOCK_M), tl.float32)
    for step in range(STEPS):
        n = step * BLOCK_N + tl.arange(0, BLOCK_N)
        code = codes_at(store_ptr, n, k, (n < outputs)[:, None] & (k < columns)[None, :], outputs, row_bytes, PLANES,
                        HIGH_BITS, BITS, HALF_UP)
        scale = tl.load(scale_ptr + (n * 0 if ONE_SCALE else n), mask=n < outputs, other=0.0)
        grad = tl.load(grad_ptr + m.to(tl.int64)[None, :] * outputs + n[:, None],
                       mask=(n < outputs)[:, None] & (m < count)[None, :], other=0.0)
        acc = exact_dot(tl.trans(code), from_storage(grad) * (scale * 2.0 ** (HIGH_BITS - BITS))[:, None], acc)
    tl.store(grad_x_ptr + m.to(tl.int64)[None, :] * columns + k[:, None],
             to_storage(acc, grad_x_ptr.dtype.element_ty), mask=(k < columns)[:, None] & (m < count)[None, :])


@triton.jit
def finish_kernel(sums_ptr, scale_ptr, bias_ptr, y_ptr, outputs, count, SPLITS: tl.constexpr, DROP: tl.constexpr,
                  ONE_SCALE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """y from the sums of all splits, added in order"""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for split in range(SPLITS):
        at = (tl.cast(split, tl.int64) * outputs + n[:, None]) * count + m[None, :]
        total += tl.load(sums_ptr + at, mask=(n < outputs)[:, None] & (m < count)[None, :], other=0.0)
    _store_result(y_ptr, scale_ptr, bias_ptr, total, n, m, outputs, count, DROP, ONE_SCALE)


def _planes(store, high_bits, bits, half_up) -> int:
    """How many planes are read; 0: the store is codes"""
    if store.dtype == torch.int8:
        return 0
    return min(bits + 1, high_bits) if half_up else high_bits


def _words(store):
    """(the store in words of 4 bytes where rows are a whole number of them, else of one; bytes a word)"""
    store = store.contiguous()
    if store.numel() and store.shape[-1] % 4 == 0 and store.data_ptr() % 4 == 0:
        return store.view(torch.uint32), 4
    return store.view(torch.uint8), 1


def _by_column_of_word(x, words, per_word):
    """(count, per_word, words), with zeros where x has no column"""
    padded = torch.nn.functional.pad(x, (0, words * per_word - x.shape[1]))
    return padded.view(len(x), words, per_word).transpose(1, 2).contiguous()


def switched_linear_forward(x, store, scale, bias, high_bits, bits, half_up):
    count, outputs = x.shape[0], store.shape[-2]
    y = x.new_empty(count, outputs)
    if y.numel() == 0:
        return y
    planes = _planes(store, high_bits, bits, half_up)
    layout = "planes" if planes else "codes"
    block_n, block_w = TILES[layout, count > 1]
    block_m = 1 if count == 1 else 16 if count <= 16 or planes else 32 if x.dtype == torch.float32 else 64
    store, bytes_ = _words(store)
    words = store.shape[-1]
    tiles = triton.cdiv(outputs, block_n) * triton.cdiv(count, block_m)
    splits = max(1, min(PROGRAMS // tiles, words // (4 * block_w)))
    steps = triton.cdiv(triton.cdiv(words, splits), block_w)
    splits = triton.cdiv(words, steps * block_w) if words else 1
    sums = None if splits == 1 else scale.new_empty(splits, outputs, count)
    common = {"scale_ptr": scale.contiguous(), "bias_ptr": None if bias is None else bias.contiguous(), "y_ptr": y,
              "outputs": outputs, "count": count, "ONE_SCALE": scale.numel() == 1, "BLOCK_N": block_n,
              "BLOCK_M": block_m, **OPTIONS, "num_stages": STAGES[layout]}
    with torch.cuda.device_of(x):
        switched_linear_forward_kernel[triton.cdiv(outputs, block_n), splits, triton.cdiv(count, block_m)](
            x_ptr=_by_column_of_word(x, words, bytes_ * (8 if planes else 1)), store_ptr=store, sums_ptr=sums,
            WORDS=words, STEPS=steps, PLANES=planes, BYTES=bytes_, HIGH_BITS=high_bits, BITS=bits, HALF_UP=half_up,
            BLOCK_W=block_w, **common)
        if sums is not None:
            finish_kernel[triton.cdiv(outputs, block_n), triton.cdiv(count, block_m)](
                sums_ptr=sums, SPLITS=splits, DROP=high_bits - bits, **common)
    return y


def switched_linear_backward(grad, store, scale, in_features, high_bits, bits, half_up):
    count, outputs = grad.shape
    grad_x = grad.new_empty(count, in_features)
    if grad_x.numel() == 0:
        return grad_x
    tile = GRADIENT_TILE
    with torch.cuda.device_of(grad):
        switched_linear_backward_kernel[triton.cdiv(in_features, tile["BLOCK_K"]), triton.cdiv(count, tile["BLOCK_M"])](
            grad_ptr=grad.contiguous(), store_ptr=store.contiguous(), scale_ptr=scale.contiguous(), grad_x_ptr=grad_x,
            count=count, outputs=outputs, columns=in_features, row_bytes=store.shape[-1],
            STEPS=triton.cdiv(outputs, tile["BLOCK_N"]), PLANES=_planes(store, high_bits, bits, half_up),
            HIGH_BITS=high_bits, BITS=bits, HALF_UP=half_up, ONE_SCALE=scale.numel() == 1, **tile,
            **GRADIENT_OPTIONS)
    return grad_x
