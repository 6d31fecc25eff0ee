"""Stores to test with, and what they must hold, in Python integers. Imports no torch: these tests run without it."""

import json
import math
from fractions import Fraction

import numpy as np

import mbq_store
from mbq_store import LayerData

ROUNDINGS = ("half_even", "half_up")


def bounds(bits, signed=True):
    if signed and bits == 1:
        return -1, 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def switched(code, from_bits, to_bits, rounding):
    """One code at fewer bits; Python rounds a Fraction half to even."""
    exact = Fraction(code, 2 ** (from_bits - to_bits))
    rounded = round(exact) if rounding == "half_even" else math.floor(exact + Fraction(1, 2))
    lo, hi = bounds(to_bits)
    return max(lo, min(hi, rounded))


def switched_array(codes, from_bits, to_bits, rounding):
    table = {code: switched(code, from_bits, to_bits, rounding) for code in range(*bounds(from_bits))}
    table[bounds(from_bits)[1]] = switched(bounds(from_bits)[1], from_bits, to_bits, rounding)
    return np.array([table[code] for code in codes.reshape(-1).tolist()], codes.dtype).reshape(codes.shape)


def packed_row(codes, bits, signed):
    """Fields of a row of codes as bytes, through one long integer."""
    number = 0
    for i, code in enumerate(codes):
        field = (code + 1) // 2 if signed and bits == 1 else code % 2**bits
        number |= field << (i * bits)
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


def packed(codes, bits, signed=True):
    rows = codes.reshape(codes.shape[0], math.prod(codes.shape[1:])).tolist()
    data = b"".join(packed_row(row, bits, signed) for row in rows)
    return np.frombuffer(data, np.uint8).reshape(len(rows), -(-math.prod(codes.shape[1:]) * bits // 8))


def weights(codes, scale, from_bits, to_bits, offset=None):
    column = (-1,) + (1,) * (codes.ndim - 1)
    scale = (scale.astype(np.float64) * 2 ** (from_bits - to_bits)).astype(np.float32)  # exact: a power of two
    made = codes.astype(np.float32) * scale.reshape(column)
    return made if offset is None else made + offset.reshape(column)


def random_layer(name, shape, *, bits=8, signed=True, seed=0, offset=False, **more):
    """A layer with every code of its range where there is room; scales of many sizes."""
    rng = np.random.default_rng(seed)
    lo, hi = bounds(bits, signed)
    codes = rng.integers(lo, hi + 1, shape)
    if signed and bits == 1:
        codes = np.where(codes < 0, -1, 1)
    scale = np.exp2(rng.uniform(-12, 3, shape[0])).astype(np.float32)
    real = rng.standard_normal(shape[0]).astype(np.float32) if offset else None
    return LayerData(name, codes.astype(np.int8 if signed else np.uint8), scale, real, bits, signed, **more)


def small_store(path, *, rounding="half_up", layout="planes"):
    """Two layers and a rest of three dtypes in less than two kilobytes."""
    layers = [random_layer("conv", (3, 2, 3, 3), layout=layout, module="Conv2d"),
              random_layer("head", (2, 5), bits=4, layout="packed", switchable=False, offset=True, seed=1)]
    rest = {"conv.bias": np.arange(3, dtype=np.float32), "bn.num_batches_tracked": np.array(7),
            "norm.weight": mbq_store.to_bfloat16(np.float32([1, 2, 3]))}
    mbq_store.write(path, layers, rest, rounding=rounding, trained_bits=(8, 4, 2))
    return layers


def split(data: bytes):
    """(header as a dictionary, tensor bytes) of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + size]), data[8 + size:]


def join(header, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def read_everything(path):
    """Every tensor of a store at every bit-width."""
    with mbq_store.open(path, threads=1) as store:
        for name in store.layers:
            for bits in store.layer(name).bit_widths:
                store.codes(name, bits)
                store.dequantize(name, bits)
        tensors = {name: store.tensor(name) for name in store.rest}
        return tensors, store.summary()
