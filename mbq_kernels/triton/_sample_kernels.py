"""The kernels of sample_grad_norm: one tile of one sample a program, of G^T A or of the two Gram matrices."""

import triton
import triton.language as tl

from .quant_math import INTERPRETED, from_storage


@triton.jit
def _start(ptr, sample, groups, strides):
    """The first element of a group of channels of one image; groups follow each other as samples"""
    return ptr + (sample // groups).to(tl.int64) * strides[0] + (sample % groups).to(tl.int64) * strides[1]


@triton.jit
def _activations(ptr, t, c, positions, inputs, strides, image, WINDOWS: tl.constexpr):
    """Elements at positions t and columns c, of which one is a row and one a column; WINDOWS None: a matrix

    strides: sample, group, row, pixel, channel. image: height, width, width of the result. WINDOWS: kernel, stride,
    padding, dilation, two each; a column is (channel, tap).
    """
    mask = (t < positions) & (c < inputs)
    if WINDOWS is None:
        at = t.to(tl.int64) * strides[3] + c.to(tl.int64) * strides[4]
    else:
        tap = c % (WINDOWS[0] * WINDOWS[1])
        y = t // image[2] * WINDOWS[2] - WINDOWS[4] + tap // WINDOWS[1] * WINDOWS[6]
        x = t % image[2] * WINDOWS[3] - WINDOWS[5] + tap % WINDOWS[1] * WINDOWS[7]
        mask = mask & (y >= 0) & (y < image[0]) & (x >= 0) & (x < image[1])
        channel = c // (WINDOWS[0] * WINDOWS[1])
        at = y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3] + channel.to(tl.int64) * strides[4]
    return tl.load(ptr + at, mask=mask, other=0.0)


@triton.jit
def _grads(ptr, t, o, positions, outputs, strides):
    """Elements at positions t and outputs o; strides: sample, group, position, output"""
    at = t.to(tl.int64) * strides[2] + o.to(tl.int64) * strides[3]
    return tl.load(ptr + at, mask=(t < positions) & (o < outputs), other=0.0)


@triton.jit
def _dot(x, y, acc, PRECISION: tl.constexpr):
    """acc + x @ y in float32"""
    if INTERPRETED:
        return tl.dot(from_storage(x), from_storage(y), acc, input_precision="ieee")
    elif x.dtype == y.dtype:
        return tl.dot(x, y, acc, input_precision=PRECISION)
    else:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), acc, input_precision=PRECISION)


@triton.jit
def tiles_kernel(a_ptr, g_ptr, factor_ptr, sums_ptr, positions, groups, slots, a_strides, g_strides, image,
                 WINDOWS: tl.constexpr, PRECISION: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
                 STEPS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr):
    """sum of (factor * G^T A)^2 over one tile"""
    column_tiles: tl.constexpr = tl.cdiv(INPUTS, BLOCK_I)
    tiles: tl.constexpr = column_tiles * tl.cdiv(OUTPUTS, BLOCK_O)
    sample, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    o = tile // column_tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tile % column_tiles * BLOCK_I + tl.arange(0, BLOCK_I)
    a_ptr, g_ptr = _start(a_ptr, sample, groups, a_strides), _start(g_ptr, sample, groups, g_strides)
    acc = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for step in range(STEPS):
        t = step * BLOCK_T + tl.arange(0, BLOCK_T)
        g = _grads(g_ptr, t[None, :], o[:, None], positions, OUTPUTS, g_strides)
        a = _activations(a_ptr, t[:, None], i[None, :], positions, INPUTS, a_strides, image, WINDOWS)
        acc = _dot(g, a, acc, PRECISION)
    if factor_ptr is not None:
        row = (sample % groups).to(tl.int64) * OUTPUTS + o
        mask = (o < OUTPUTS)[:, None] & (i < INPUTS)[None, :]
        acc = acc * tl.load(factor_ptr + row[:, None] * INPUTS + i[None, :], mask=mask, other=0.0)
    total = tl.sum(acc * acc)  # at once: axis by axis does not compile for sm_100
    tl.store(sums_ptr + sample.to(tl.int64) * slots + tile, total.to(tl.float64))


@triton.jit
def bias_kernel(g_ptr, sums_ptr, positions, groups, slots, g_strides, OUTPUTS: tl.constexpr, STEPS: tl.constexpr,
                BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr):
    """sum_o (sum_t g_to)^2 over one block of outputs, in the last slots"""
    blocks: tl.constexpr = tl.cdiv(OUTPUTS, BLOCK_O)
    sample, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    o = block * BLOCK_O + tl.arange(0, BLOCK_O)
    g_ptr = _start(g_ptr, sample, groups, g_strides)
    acc = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    for step in range(STEPS):
        t = step * BLOCK_T + tl.arange(0, BLOCK_T)
        acc += from_storage(_grads(g_ptr, t[:, None], o[None, :], positions, OUTPUTS, g_strides))
    total = tl.sum(acc, axis=0)
    tl.store(sums_ptr + sample.to(tl.int64) * slots + slots - blocks + block,
             tl.sum(total * total, axis=0).to(tl.float64))


@triton.jit
def gram_kernel(a_ptr, g_ptr, sums_ptr, positions, groups, slots, a_strides, g_strides, image, WINDOWS: tl.constexpr,
                PRECISION: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, BIAS: tl.constexpr,
                BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """sum of (A A^T + bias) (G G^T) over one tile on or under the diagonal; under it, twice"""
    sample, pair = tl.program_id(0) // slots, tl.program_id(0) % slots
    row = ((tl.sqrt(8.0 * pair + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > pair, row - 1, tl.where((row + 1) * (row + 2) // 2 <= pair, row + 1, row))
    column = pair - row * (row + 1) // 2
    s = row * BLOCK_T + tl.arange(0, BLOCK_T)
    t = column * BLOCK_T + tl.arange(0, BLOCK_T)
    a_ptr, g_ptr = _start(a_ptr, sample, groups, a_strides), _start(g_ptr, sample, groups, g_strides)
    of_a = tl.full((BLOCK_T, BLOCK_T), 1.0 if BIAS else 0.0, tl.float32)
    for begin in range(0, INPUTS, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        x = _activations(a_ptr, s[:, None], c[None, :], positions, INPUTS, a_strides, image, WINDOWS)
        y = _activations(a_ptr, t[None, :], c[:, None], positions, INPUTS, a_strides, image, WINDOWS)
        of_a = _dot(x, y, of_a, PRECISION)
    of_g = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    for begin in range(0, OUTPUTS, BLOCK_C):
        o = begin + tl.arange(0, BLOCK_C)
        x = _grads(g_ptr, s[:, None], o[None, :], positions, OUTPUTS, g_strides)
        y = _grads(g_ptr, t[None, :], o[:, None], positions, OUTPUTS, g_strides)
        of_g = _dot(x, y, of_g, PRECISION)
    total = tl.sum(of_a.to(tl.float64) * of_g.to(tl.float64))  # in float64: terms cancel
    tl.store(sums_ptr + sample.to(tl.int64) * slots + pair, tl.where(row == column, total, 2.0 * total))
