"""Per-sample gradient norms against Opacus, BackPACK, torch.func and einsum: time and peak memory.

    pytest bench/bench_sample_grad_norm.py [--mbq-json FILE] [--mbq-small] [--mbq-device cpu|cuda]

Multiplications of N samples with T positions and a weight of d_out x d_in: N T d_out d_in with tiles, half of
N T^2 (d_in + d_out) with Gram products. bytes of a case = activations and grad_outputs, read once.
Peak memory is what a call takes beyond its inputs (bench/memory.py); a rival's includes the gradients it forms.
"""

import contextlib
import math
from dataclasses import dataclass, replace

import memory
import norm_rivals
import pytest
import timing
import torch
from harness import our_calls, time_all, wanted
from rows import fill_ratios, row_of

import mbq_kernels as mbq


@dataclass(frozen=True)
class Layer:
    """N samples of one layer. positions: T of a linear layer, height = width of a convolution's image."""
    samples: int
    positions: int
    inputs: int
    outputs: int
    kernel: int = 0  # 0: a linear layer
    stride: int = 1
    network: str = ""
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    what: str = "forward"
    bits: tuple = ()
    axis: None = None

    @property
    def op(self) -> str:
        return "sample_grad_norm_conv2d" if self.kernel else "sample_grad_norm_linear"

    @property
    def shape(self) -> str:
        kernel = f"-{self.kernel}x{self.kernel}/{self.stride}" if self.kernel else ""
        return f"{self.network}-N{self.samples}-T{self.positions}-{self.inputs}to{self.outputs}{kernel}"

    @property
    def name(self) -> str:
        return f"{self.op}-{self.shape}-{str(self.dtype).removeprefix('torch.')}"

    def module(self) -> torch.nn.Module:
        if not self.kernel:
            return torch.nn.Linear(self.inputs, self.outputs)
        return torch.nn.Conv2d(self.inputs, self.outputs, self.kernel, self.stride, self.kernel // 2)

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of activations and grad_outputs."""
        if not self.kernel:
            middle = () if self.positions == 1 else (self.positions,)
            return (self.samples, *middle, self.inputs), (self.samples, *middle, self.outputs)
        after = (self.positions - 1) // self.stride + 1
        return ((self.samples, self.inputs, self.positions, self.positions), (self.samples, self.outputs, after, after))

    @property
    def numel(self) -> int:
        return sum(math.prod(size) for size in self.sizes)

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize


LINEAR = [Layer(64, 1, 512, 1000, network="head"), Layer(32, 64, 512, 512, network="short"),
          Layer(32, 256, 384, 1536, network="design"), Layer(8, 512, 1024, 1024, network="middle"),
          Layer(2, 2048, 1024, 1024, network="long"),
          *(Layer(16, 197, i, o, network="vit_s") for i, o in ((384, 1152), (384, 384), (384, 1536), (1536, 384))),
          *(Layer(2, 512, i, o, network="llama") for i, o in ((1024, 1024), (1024, 2816), (2816, 1024)))]
RESNET18 = [(224, 3, 64, 7, 2), (56, 64, 64, 3, 1), (56, 64, 128, 3, 2), (56, 64, 128, 1, 2), (28, 128, 128, 3, 1),
            (28, 128, 256, 3, 2), (28, 128, 256, 1, 2), (14, 256, 256, 3, 1), (14, 256, 512, 3, 2),
            (14, 256, 512, 1, 2), (7, 512, 512, 3, 1)]
CASES = [*LINEAR, *(Layer(8, *layer, network="resnet18") for layer in RESNET18)]


def ours(case: Layer, layer, activations, grad_outputs):
    if not case.kernel:
        return lambda: mbq.sample_grad_norm_linear(activations, grad_outputs)
    return lambda: mbq.sample_grad_norm_conv2d(activations, grad_outputs, kernel_size=layer.kernel_size,
                                               stride=layer.stride, padding=layer.padding)


def candidates(case: Layer, layer, activations, grad_outputs) -> dict:
    """{name: (call or exception, context)}"""
    mine = our_calls(case, ours(case, layer, activations, grad_outputs))
    return mine | {name: (call, contextlib.nullcontext)
                   for name, call in norm_rivals.calls(layer, activations, grad_outputs).items() if wanted(name)}


def expected(layer, activations, grad_outputs):
    """In float64, one sample after the other."""
    norms = norm_rivals.einsum_of(layer)
    return torch.cat([norms(a.double().unsqueeze(0), g.double().unsqueeze(0))
                      for a, g in zip(activations, grad_outputs, strict=True)])


def check(name: str, norms, want) -> str:
    """What was found; ours must be within 1e-5 of float64, a rival within its own arithmetic's rounding."""
    error = ((norms.double() - want).abs() / want).max().item()
    limit = 1e-5 if name.startswith("mbq") else 5e-2 if norms.dtype == torch.bfloat16 else 1e-2
    assert error <= limit, f"{name}: relative error {error:.3g} against float64, allowed {limit:.3g}"
    return f"relative error {error:.1g}"


def inputs_of(case: Layer):
    generator = torch.Generator(case.device).manual_seed(0)
    make = lambda size: torch.randn(size, generator=generator, device=case.device).to(case.dtype)  # noqa: E731
    return case.module().to(case.device, case.dtype), *(make(size) for size in case.sizes)


@torch.no_grad()
def measure(case: Layer):
    """Rows of every candidate, measured or with the reason why not, and our own call. Checks before it times."""
    torch._dynamo.reset()
    timing.release_memory()
    layer, activations, grad_outputs = inputs_of(case)
    want = expected(layer, activations, grad_outputs)
    rows, steps, contexts, facts = [], {}, {}, {}
    every = candidates(case, layer, activations, grad_outputs)
    for name, (call, context) in every.items():
        try:
            if isinstance(call, Exception):
                raise call
            with context():
                call()
                verdict = check(name, call(), want)
                taken = memory.peak(call, case.device)
        except Exception as error:  # a rival that is missing, fails or is wrong becomes a row that says so
            rows.append(row_of(case, name, error=f"{type(error).__name__}: {str(error).strip()}"[:300]))
            continue
        steps[name], contexts[name] = call, context
        facts[name] = {"check": verdict if taken is None else f"{verdict}, peak {taken / 1e6:.1f} MB",
                       "peak_bytes": taken, "differs": norm_rivals.OWN_PASS
                       if name in (norm_rivals.BACKPACK, norm_rivals.VMAP) else ""}
    for timer, samples in time_all(case, steps, contexts).items():
        rows += [row_of(case, name, timer=timer, **facts[name], **timing.summary(values))
                 for name, values in samples.items()]
    first = next(iter(every))
    fill_ratios(case, rows, first)
    return rows, steps.get(first)


SMALL = {"samples": 3, "inputs": 16, "outputs": 24}


BFLOAT16 = [replace(layer, dtype=torch.bfloat16) for layer in LINEAR]


@pytest.mark.parametrize("case", [*CASES, *BFLOAT16], ids=lambda case: case.name)
def test_sample_grad_norm(case, device, pytestconfig, record):
    if device == "cpu" and case.dtype != torch.float32:
        pytest.skip("measured on CUDA alone, where bfloat16 has its tensor cores")
    changed = {"device": device}
    if pytestconfig.getoption("--mbq-small"):
        changed |= {**SMALL, "positions": min(case.positions, 14)}
    record(*measure(replace(case, **changed)))
