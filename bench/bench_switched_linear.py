"""switched_linear from codes and from planes against a dequantized weight, and against torch's own linear.

    pytest bench/bench_switched_linear.py [--mbq-json FILE] [--mbq-small] [--mbq-device cpu|cuda]

bytes of a case = the store's that must be read: N K for codes, min(b + 1, 8) / 8 of it for planes (half_up); x and y,
which are small, are not counted. The copy is one of int8 codes, 2 N K bytes.
"""

import contextlib
from dataclasses import dataclass

import pytest
import timing
import torch
import torch.nn.functional as F
from harness import measure_calls, our_calls, wanted

from mbq_kernels import switched_linear

OP = "switched_linear"
OUTPUTS, INPUTS = 28672, 8192
DEQUANTIZED, LINEAR32, LINEAR16 = "dequantize + linear", "linear float32", "linear bfloat16"
COMPILED = "torch.compile (dequantize + linear)"


@dataclass(frozen=True)
class Linear:
    """`rows` rows of x through a weight of 28672 x 8192 at `bits` bits."""
    layout: str
    bits: tuple[int, ...]
    rows: int
    device: str = "cpu"
    dtype: torch.dtype = torch.int8  # of the store
    outputs: int = OUTPUTS
    inputs: int = INPUTS
    op: str = OP
    what: str = "forward"
    shape: str = f"{OUTPUTS}x{INPUTS}"

    axis: int = 0

    @property
    def x_dtype(self) -> torch.dtype:
        """What networks of the device compute in."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    @property
    def numel(self) -> int:
        return self.outputs * self.inputs

    @property
    def bytes(self) -> int:
        return self.numel if self.layout == "codes" else self.numel * min(self.bits[0] + 1, 8) // 8

    @property
    def name(self) -> str:
        return f"{OP}-{self.layout}{self.bits[0]}-rows{self.rows}-{self.shape}"


CASES = [Linear(layout, (bits,), rows) for rows in (1, 8, 64) for layout in ("codes", "planes") for bits in (8, 4, 2)
         if rows == 1 or bits == 4]


class Weight:
    """The same store, scale and x for every candidate of a case, and the codes at its bit-width."""

    def __init__(self, case: Linear):
        generator = torch.Generator(case.device).manual_seed(0)
        options = {"generator": generator, "device": case.device}
        self.case, self.x = case, torch.randn(case.rows, case.inputs, **options).to(case.x_dtype)
        self.scale = torch.rand(case.outputs, **options) * 0.01 + 0.001
        self.codes = torch.randint(-128, 128, (case.outputs, case.inputs), **options, dtype=torch.int8)
        self.store = self.codes if case.layout == "codes" else self._planes()
        self.float = self.dequantized(torch.float32)

    def _planes(self):
        weights = 2 ** torch.arange(8, dtype=torch.uint8, device=self.codes.device)
        bits = ((self.codes.view(torch.uint8) >> p & 1).view(len(self.codes), -1, 8) for p in range(7, -1, -1))
        return torch.stack([(plane * weights).sum(-1, dtype=torch.uint8) for plane in bits])

    def dequantized(self, dtype, codes=None, scale=None):
        """What a user writes today, from int8 codes."""
        codes, scale = self.codes if codes is None else codes, self.scale if scale is None else scale
        bits = self.case.bits[0]
        drop = 8 - bits
        lower = (codes.to(torch.int16) + (1 << drop) // 2 >> drop).clamp(max=2 ** (bits - 1) - 1)
        return (lower * (scale * 2**drop)[:, None]).to(dtype)


def candidates(weight: Weight) -> dict:
    """{name: (call, context)}"""
    case, x = weight.case, weight.x
    ours = lambda: switched_linear(x, weight.store, weight.scale, bits=case.bits[0])  # noqa: E731
    eager = lambda codes, scale: F.linear(x, weight.dequantized(x.dtype, codes, scale))  # noqa: E731
    compiled = torch.compile(eager)
    half, x_half = weight.float.bfloat16(), x.bfloat16()
    rivals = {DEQUANTIZED: lambda: eager(weight.codes, weight.scale),
              COMPILED: lambda: compiled(weight.codes, weight.scale), LINEAR16: lambda: F.linear(x_half, half)}
    if case.x_dtype == torch.float32:
        rivals[LINEAR32] = lambda: F.linear(x, weight.float)
    copy = (lambda: weight.codes.clone(), contextlib.nullcontext)
    rivals = {name: (call, contextlib.nullcontext) for name, call in rivals.items()
              if wanted(name) or name == DEQUANTIZED}  # which sets the error that ours may have
    return {**our_calls(case, ours), **rivals, "copy": copy}


def check(weight: Weight, results: dict) -> dict:
    """{name: what was found} on 64 outputs. Ours may be twice as far from float64 as the dequantized weight."""
    some = torch.linspace(0, weight.case.outputs - 1, 64, device=weight.x.device).long()
    want = weight.x.double() @ weight.float[some].double().T
    errors = {name: (y[:, some].double() - want).abs().max().item() for name, y in results.items()}
    for name, error in errors.items():
        limit = 2 * errors[DEQUANTIZED] if name.startswith("mbq") else 0.03 * want.abs().max().item()
        assert error <= limit, f"{name}: error {error:.3g} against float64, allowed {limit:.3g}"
    return {name: f"error {error:.2g} of {want.abs().max().item():.3g}" for name, error in errors.items()}


@torch.no_grad()
def measure(case: Linear):
    """Rows of every candidate, and our own call. Checks before it times."""
    torch._dynamo.reset()
    timing.release_memory()
    weight = Weight(case)
    return measure_calls(case, candidates(weight), lambda results: check(weight, results),
                         {LINEAR16: "weight rounded to bfloat16 beforehand"})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_switched_linear(case, device, pytestconfig, record):
    small = {"outputs": 96, "inputs": 128} if pytestconfig.getoption("--mbq-small") else {}
    record(*measure(Linear(case.layout, case.bits, case.rows, device, **small)))
