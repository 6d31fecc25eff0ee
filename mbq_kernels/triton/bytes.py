"""The Triton loop of every op from words of eight codes to words, and its launch."""

import torch
import triton

from .elementwise import OPTIONS

WORDS = 2048  # of a program of 128 threads: 16 bytes a thread where a word becomes a byte


def words_of(codes):
    """Rows of codes as int64, eight in a word; a row that does not end with a word is filled up with 0, in a copy."""
    codes = codes.contiguous()
    left = -codes.shape[-1] % 8
    if left or codes.data_ptr() % 16:
        padded = codes.new_zeros((*codes.shape[:-1], codes.shape[-1] + left))
        padded[..., :codes.shape[-1]] = codes
        codes = padded
    return codes.view(torch.int64)


def launch(kernel, count: int, device, **arguments) -> None:
    """`kernel` over `count` words; int64 offsets are its own business."""
    if count:
        with torch.cuda.device_of(device):
            kernel[(triton.cdiv(count, WORDS),)](**arguments, count=count, WORDS=WORDS, **OPTIONS)
