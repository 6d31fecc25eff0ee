"""Checks of what callers give, in the house wording: `<function>: <argument> must <constraint>, got <value>`."""

import math
import operator
import os

import numpy as np


def checked_integer(function: str, name: str, value) -> int:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {name} must be an integer, got {value!r}") from None


def checked_bits(function: str, layer, bits) -> int:
    """Return `bits`, or the layer's highest where it is None, once the layer can be had at it."""
    if bits is None:
        return layer.bits
    bits = checked_integer(function, "bits", bits)
    if bits not in layer.bit_widths:
        why = "between 2 and" if layer.switchable else "what the layer has, which is not switchable,"
        raise ValueError(f"{function}: bits must be {why} {layer.bits}, got {bits}")
    return bits


def checked_threads(function: str, threads) -> int:
    """Return `threads`, or as many as there are processors for this process where it is None."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = checked_integer(function, "threads", threads)
    if threads < 1:
        raise ValueError(f"{function}: threads must be at least 1, got {threads}")
    return threads


def _on_cache_lines(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a new array that begins with a cache line: lines are then written whole, and past the cache."""
    count = math.prod(shape) * dtype.itemsize
    memory = np.empty(count + 63, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + count].view(dtype).reshape(shape)


def checked_out(function: str, out, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return `out` once a result can be written to it, or a new array."""
    if out is None:
        return _on_cache_lines(shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype:
        raise TypeError(f"{function}: out must be an array of {dtype}, got {getattr(out, 'dtype', type(out).__name__)}")
    if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable or not out.flags.aligned:
        raise ValueError(f"{function}: out must be contiguous, aligned, writeable and of shape {shape}, got shape "
                         f"{out.shape}, strides {out.strides}, writeable {out.flags.writeable}")
    return out
