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

import mbq_kernels as mbq
from bench_fake_quantize import SHAPES
from harness import BOTH, FORWARD, Case
from lsb_rivals import BITS, K, one_tensor, rivals_of

OPTIONS = {"bits": BITS, "k": K}
ELEMENTS = {"round_clamp": 2, "lsb_penalty": 3, "round_clamp_lsb": 5, "round_clamp_lsb_foreach": 5}


@dataclass(frozen=True)
class LsbCase(Case):
    @property
    def bytes(self) -> int:
        if self.op == "extract_lsb":
            return (self.dtype.itemsize + 1) * self.numel
        return ELEMENTS[self.op] * self.numel * self.dtype.itemsize

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
        residuals = case.op == "extract_lsb"  # in which a code more or less is as many as 2^k
        self.scales = [[one * 2**K if residuals else limit * 2.0 ** (1 - BITS)] for limit in self.limits] + [[one]]
        penalties = torch.full((len(self.xs),) if case.op.endswith("foreach") else (), 1e-3, device=case.device)
        values = [] if case.op == "lsb_penalty" else [make(shape) for shape in case.shapes]
        self.upstream = [*values, penalties] if case.what == BOTH else []


def _foreach(case, inputs):
    def call():
        values, penalties, _ = mbq.round_clamp_lsb_foreach(inputs.xs, limits=inputs.limits, **OPTIONS)
        return [*values, penalties]
    return call, inputs.xs


def ours_one(x, limit):
    return mbq.round_clamp_lsb(x, limit=limit, **OPTIONS)


OURS = {
    "round_clamp": one_tensor(lambda x, limit: mbq.round_clamp(x, bits=BITS, limit=limit)),
    "extract_lsb": one_tensor(lambda x, limit: mbq.extract_lsb(x, limit=limit, **OPTIONS)),
    "lsb_penalty": one_tensor(lambda x, limit: mbq.lsb_penalty(x, limit=limit, **OPTIONS)),
    "round_clamp_lsb": one_tensor(ours_one),
    "round_clamp_lsb_foreach": _foreach,
}


def _cases():
    f32, bf16 = torch.float32, torch.bfloat16
    chosen = [(op, shape, f32, what) for op, what in (("round_clamp", FORWARD), ("extract_lsb", FORWARD),
                                                      ("lsb_penalty", BOTH), ("round_clamp_lsb", BOTH))
              for shape in ("512x512x3x3", "4096x4096")]
    chosen += [("lsb_penalty", "4096x4096", bf16, BOTH)]
    chosen += [("round_clamp_lsb_foreach", shape, f32, BOTH) for shape in ("resnet20", "resnet50")]
    return [LsbCase(op=op, shape=shape, shapes=SHAPES[shape], dtype=dtype, what=what, bits=(BITS,))
            for op, shape, dtype, what in chosen]


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.name)
def test_lsb(case, device, pytestconfig, run_case):
    case = dataclasses.replace(case, device=device)
    if pytestconfig.getoption("--mbq-small"):
        shapes = tuple(tuple(min(size, 24) for size in shape) for shape in case.shapes[:3])
        case = dataclasses.replace(case, shapes=shapes)
    run_case(case, OURS[case.op], rivals_of(case, ours_one))
