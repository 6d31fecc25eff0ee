"""The Triton loop of every op on words of eight bytes: tensors as words, offsets, launch."""

import torch
import triton
import triton.language as tl

from ._tiling import OPTIONS

WORDS = 2048  # of a program: 16 a thread, so that one byte of each is a 16-byte access


@triton.jit
def word_offsets(count, WORDS: tl.constexpr):
    """(offsets, their mask); int64 before the multiplication: there may be more than 2^31 words"""
    offsets = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    return offsets, offsets < count


def to_words(rows, dtype, fill: int = 0):
    """Rows of bytes as words in one row, on 16 bytes; a row that is no whole words is filled up, in a copy."""
    rows, width = rows.contiguous(), dtype.itemsize
    if rows.shape[-1] % width or rows.data_ptr() % 16:
        padded = rows.new_full((*rows.shape[:-1], triton.cdiv(rows.shape[-1], width) * width), fill)
        padded[..., :rows.shape[-1]] = rows
        rows = padded
    return rows.view(-1).view(dtype)


def from_words(words, dtype, shape):
    """Rows of bytes again, without what filled them up."""
    width = words.dtype.itemsize
    rows = words.view(dtype).view(*shape[:-1], triton.cdiv(shape[-1], width) * width)
    return rows[..., :shape[-1]].contiguous()


def launch(kernel, like, count: int, **arguments) -> None:
    """`kernel` over `count` words on the device of `like`."""
    if count:
        with torch.cuda.device_of(like):
            kernel[(triton.cdiv(count, WORDS),)](count=count, WORDS=WORDS, **arguments, **OPTIONS)
