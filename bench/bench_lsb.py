"""round_clamp and its least significant bits against the eager formula and torch.compile of it.

    pytest bench/bench_lsb.py [--mbq-json FILE] [--mbq-small] [--mbq-device cpu|cuda]

bytes of a case, of N elements: round_clamp reads x and writes as much, 2 N; extract_lsb writes int8, N (size + 1);
lsb_penalty reads x, and again to write its gradient, 3 N; round_clamp_lsb also writes a value and reads its gradient,
5 N.
"""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from bench_fake_quantize import SHAPES
from harness import BOTH, FORWARD, Case
from lsb_rivals import BITS, K, both, many_rivals, one_rivals, one_tensor, penalty, residual, value

import mbq_kernels as mbq

OPTIONS = {"bits": BITS, "k": K}


@dataclass(frozen=True)
class LsbCase(Case):
    """moves: elements of x's dtype for each of x; codes: int8 values beside them; value: x_hat is an output."""
    moves: int = 0
    codes: int = 0
    value: bool = True
    many: bool = False

    @property
    def bytes(self) -> int:
        return (self.moves * self.dtype.itemsize + self.codes) * self.numel

    def inputs(self):
        return LsbInputs(self)


class LsbInputs:
    """xs, their limits and upstream gradients; scales: what a value may differ by in a rival, a step of its x."""

    def __init__(self, case: LsbCase):
        generator = torch.Generator(case.device).manual_seed(0)
        make = lambda shape: torch.randn(shape, generator=generator, device=case.device, dtype=case.dtype)  # noqa: E731
        self.xs = [make(shape).requires_grad_() for shape in case.shapes]
        self.limits = [x.detach().abs().amax().float() for x in self.xs]
        one = torch.ones((), device=case.device)
        # in a residual a code more or less is as many as 2^k
        self.scales = [[one * 2**K if case.codes else limit * 2.0 ** (1 - BITS)] for limit in self.limits] + [[one]]
        penalties = torch.full((len(self.xs),) if case.many else (), 1e-3, device=case.device)
        values = [make(shape) for shape in case.shapes] if case.value else []
        self.upstream = [*values, penalties] if case.what == BOTH else []


def _foreach(case, inputs):
    def call():
        values, penalties, _ = mbq.round_clamp_lsb_foreach(inputs.xs, limits=inputs.limits, **OPTIONS)
        return [*values, penalties]
    return call, inputs.xs


def ours_one(x, limit):
    return mbq.round_clamp_lsb(x, limit=limit, **OPTIONS)


def work(function, formula, **facts) -> dict:
    return {"ours": one_tensor(function), "rivals": one_rivals(formula), **facts}


WORK = {  # by op: what a Case of it has
    "round_clamp": work(lambda x, limit: mbq.round_clamp(x, bits=BITS, limit=limit), value, moves=2, what=FORWARD),
    "extract_lsb": work(lambda x, limit: mbq.extract_lsb(x, limit=limit, **OPTIONS), residual, moves=1, codes=1,
                        what=FORWARD),
    "lsb_penalty": work(lambda x, limit: mbq.lsb_penalty(x, limit=limit, **OPTIONS), penalty, moves=3, value=False),
    "round_clamp_lsb": work(ours_one, both, moves=5),
    "round_clamp_lsb_foreach": {"ours": _foreach, "rivals": many_rivals(ours_one), "moves": 5, "many": True},
}


def _cases():
    f32, bf16 = torch.float32, torch.bfloat16
    chosen = [(op, shape, f32) for op in WORK if op != "round_clamp_lsb_foreach"
              for shape in ("512x512x3x3", "4096x4096")]
    chosen += [("lsb_penalty", "4096x4096", bf16)]
    chosen += [("round_clamp_lsb_foreach", shape, f32) for shape in ("resnet20", "resnet50")]
    return [LsbCase(op=op, shape=shape, shapes=SHAPES[shape], dtype=dtype, bits=(BITS,), **WORK[op])
            for op, shape, dtype in chosen]


CASES = _cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lsb(case, device, pytestconfig, run_case):
    case = dataclasses.replace(case, device=device)
    if pytestconfig.getoption("--mbq-small"):
        shapes = tuple(tuple(min(size, 24) for size in shape) for shape in case.shapes[:3])
        case = dataclasses.replace(case, shapes=shapes)
    run_case(case)
