"""The integer ops against eager PyTorch, torch.compile of it, and NumPy: share of a copy's bandwidth on their bytes.

    pytest bench/bench_codes.py [--mbq-json FILE] [--mbq-small] [--mbq-device cpu|cuda]
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from harness import FORWARD, Candidate, Case

import mbq_kernels as mbq

EAGER, COMPILED, NUMPY = "eager integers", "torch.compile(eager integers)", "NumPy"


@dataclass(frozen=True)
class CodeCase(Case):
    """`make` gives the inputs of every call from codes of `shapes`; all of them are read and all results written."""
    make: Callable = None
    bytes_per_code: float = 2.0

    @property
    def bytes(self) -> int:
        return math.ceil(self.bytes_per_code * self.numel)

    @property
    def name(self) -> str:
        return f"{self.op}-{self.shape}"

    def inputs(self):
        return CodeInputs(self)


class CodeInputs:
    """xs: what a copy copies, codes or (quantize_codes) x; arguments: what the candidates get; scales: a step of 1."""

    def __init__(self, case: CodeCase):
        generator = torch.Generator(case.device).manual_seed(0)
        (shape,) = case.shapes
        if case.dtype == torch.int8:
            lo = -(2 ** (case.bits[0] - 1))
            x = torch.randint(lo, -lo, shape, generator=generator, device=case.device, dtype=torch.int8)
        else:
            x = torch.randn(shape, generator=generator, device=case.device, dtype=case.dtype)
        self.xs = [x]
        self.arguments = case.make(x)
        self.scales = [[torch.ones((), device=case.device)]]


def calls(function) -> Callable:
    """Candidate.build from function(*arguments) -> one result."""
    return lambda case, inputs: (lambda: [function(*inputs.arguments)], [])


def switched(codes, shift=4, lo=-8, hi=7):
    wide = codes.to(torch.int16)
    return ((wide + (2 ** (shift - 1) - 1) + ((wide >> shift) & 1)) >> shift).clamp(lo, hi)


def eager_switch(codes):
    return switched(codes).to(torch.int8)


def eager_dequantize(codes, scale):
    return switched(codes) * (scale * 16)[:, None]


def eager_quantize(x, scale):
    return (x / scale).round().clamp(-128, 127).to(torch.int8)


def eager_pack(codes):
    return (codes[..., 0::2] & 15 | (codes[..., 1::2] & 15) << 4).view(torch.uint8)


def eager_unpack(packed):
    return ((torch.stack([packed & 15, packed >> 4], -1).flatten(-2) ^ 8) - 8).view(torch.int8)


def eager_to_planes(codes):
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=codes.device)
    rows = codes.view(torch.uint8).unflatten(-1, (-1, 8))
    return torch.stack([((rows >> bit & 1) * weights).sum(-1, dtype=torch.uint8) for bit in reversed(range(8))])


def eager_from_planes(planes):
    shifts = torch.arange(8, dtype=torch.uint8, device=planes.device)
    top = sum((planes[p, ..., None] >> shifts & 1) << (4 - p) for p in range(5)).flatten(-2).to(torch.int8)
    return ((((top ^ 16) - 16) + 1) >> 1).clamp(max=7)


def numpy_switch(codes):
    return np.clip(np.rint(codes / np.float32(16)), -8, 7).astype(np.int8)


def numpy_dequantize(codes, scale):
    return np.clip(np.rint(codes / np.float32(16)), -8, 7) * (scale * np.float32(16))[:, None]


def numpy_quantize(x, scale):
    return np.clip(np.rint(x / scale), -128, 127).astype(np.int8)


def numpy_pack(codes):
    return (codes[..., 0::2] & 15 | codes[..., 1::2] << 4).view(np.uint8)


def numpy_unpack(packed):
    return ((np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1) ^ 8) - 8).view(np.int8)


def numpy_to_planes(codes):
    return np.stack([np.packbits(codes >> bit & 1, axis=-1, bitorder="little") for bit in reversed(range(8))])


def numpy_from_planes(planes):
    top = sum(np.unpackbits(planes[p], axis=-1, bitorder="little") << (4 - p) for p in range(5)).view(np.int8)
    return np.minimum((((top ^ 16) - 16) + 1) >> 1, 7)


def in_numpy(function) -> Callable:
    def build(case, inputs):
        arrays = [argument.numpy() for argument in inputs.arguments]
        return (lambda: [torch.from_numpy(function(*arrays))]), []
    return build


def scales(x):
    return torch.linspace(0.01, 0.02, x.shape[0], device=x.device)


def step(x):
    return torch.full((1,), 0.02, device=x.device)


SHAPES = {"64Mi": (8192, 8192), "1Mi": (1024, 1024)}
WORK = {  # by its name: op, bits of the codes, bytes a code, inputs, ours, eager, NumPy
    "8to4": ("switch_bits", 8, 2, lambda c: (c,), lambda c: mbq.switch_bits(c, to_bits=4), eager_switch, numpy_switch),
    "8to4-float32": ("dequantize_codes", 8, 5, lambda c: (c, scales(c)), lambda c, s: mbq.dequantize_codes(
        c, s, to_bits=4, axis=0), eager_dequantize, numpy_dequantize),
    "float32": ("quantize_codes", 8, 5, lambda x: (x, step(x)), lambda x, s: mbq.quantize_codes(x, s, bits=8),
                eager_quantize, numpy_quantize),
    "4bits": ("pack_codes", 4, 1.5, lambda c: (c,), lambda c: mbq.pack_codes(c, bits=4), eager_pack, numpy_pack),
    "unpack-4bits": ("pack_codes", 4, 1.5, lambda c: (mbq.pack_codes(c, bits=4),), lambda p: mbq.unpack_codes(
        p, bits=4, shape=(p.shape[0], 2 * p.shape[1])), eager_unpack, numpy_unpack),
    "8bits": ("to_planes", 8, 2, lambda c: (c,), mbq.to_planes, eager_to_planes, numpy_to_planes),
    "from_planes-8to4": ("to_planes", 8, 1 + 5 / 8, lambda c: (mbq.to_planes(c),), lambda p: mbq.from_planes(
        p, bits=4, shape=(p.shape[1], 8 * p.shape[2])), eager_from_planes, numpy_from_planes),
}


def rivals(eager, array, exact: bool) -> Callable:
    """Case.rivals from the eager and the NumPy form; a compiled one has other bits where exact is false."""
    every = [Candidate(EAGER, calls(eager), exact=True),
             Candidate(COMPILED, lambda case, inputs: calls(torch.compile(eager))(case, inputs), exact=exact,
                       compiles=True)]
    return lambda case: every + [Candidate(NUMPY, in_numpy(array), exact=True)] * (case.device == "cpu")


def case_of(work: str, shape: str) -> CodeCase:
    op, bits, bytes_per_code, make, ours, eager, array = WORK[work]
    floats = op == "quantize_codes"  # whose compiled x / scale may be x * (1 / scale)
    return CodeCase(op=op, shape=f"{work}-{shape}", shapes=(SHAPES[shape],), what=FORWARD, bits=(bits,), make=make,
                    dtype=torch.float32 if floats else torch.int8, bytes_per_code=bytes_per_code, ours=calls(ours),
                    rivals=rivals(eager, array, exact=not floats))


CASES = [case_of(work, shape) for work in WORK for shape in SHAPES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_codes(case, device, pytestconfig, run_case):
    small = {"shapes": ((24, 32),)} if pytestconfig.getoption("--mbq-small") else {}
    run_case(dataclasses.replace(case, device=device, **small))
