"""MSQ's one weight against a trainable plane for every bit, on ResNet-20's weights at 8 bits.

    pytest bench/bench_bit_planes.py -s [--mbq-device cpu|cuda]

Trainable parameters and the bytes of parameters, gradients and SGD's momentum are counted; the time is what a step
spends on quantization: every weight and its penalty, their gradients, the optimizer's step on what is trained.
"""

import statistics
import time

import pytest
import torch
from bench_fake_quantize import resnet20
from bit_planes import PlanesBSQ, PlanesCSQ

import mbq_kernels as mbq

BITS = 8
STEPS = 15
WANTED = {"parameters": 8, "bytes": 4, "ms": 7}  # times ours, of the two planes a bit; design: 8 x, 1/4, 7 x


class RoundClamp:
    """The float weights themselves, quantized in one call."""

    def __init__(self, weights):
        self.parameters = [weight.clone().requires_grad_() for weight in weights]

    def __call__(self):
        limits = torch._foreach_norm([weight.detach() for weight in self.parameters], ord=torch.inf)
        values, penalties, _ = mbq.round_clamp_lsb_foreach(self.parameters, bits=BITS, limits=limits)
        return values, penalties.sum()

    def clamp(self):
        pass


class Planes:
    """A bit-plane quantizer for every weight."""

    def __init__(self, kind, weights):
        self.layers = [kind(weight, BITS) for weight in weights]
        self.parameters = [p for layer in self.layers for p in layer.parameters]

    def __call__(self):
        values, penalties = zip(*(layer() for layer in self.layers), strict=True)
        return values, sum(penalties)

    def clamp(self):
        for layer in self.layers:
            layer.clamp()


class Method:
    """One way to train the weights, and its optimizer."""

    def __init__(self, quantizer, upstream):
        self.quantizer, self.upstream = quantizer, upstream
        self.optimizer = torch.optim.SGD(quantizer.parameters, lr=1e-4, momentum=0.9)
        self.seconds = []

    def step(self):
        values, penalty = self.quantizer()
        torch.autograd.backward([*values, penalty], [*self.upstream, torch.full_like(penalty, 1e-6)])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.quantizer.clamp()

    def time(self):
        synchronize = torch.cuda.synchronize if self.upstream[0].is_cuda else lambda: None
        synchronize()
        start = time.perf_counter()
        self.step()
        synchronize()
        self.seconds.append(time.perf_counter() - start)

    def row(self) -> dict:
        """bytes: of parameters, their gradients and all state of the optimizer that lies beside them"""
        parameters = self.quantizer.parameters
        state = [t for p in parameters for t in self.optimizer.state[p].values() if isinstance(t, torch.Tensor)]
        stored = sum(t.numel() * t.element_size() for t in (*parameters, *parameters, *state))
        return {"parameters": sum(p.numel() for p in parameters), "bytes": stored,
                "ms": 1e3 * statistics.median(self.seconds)}


def close(values, weights) -> float:
    """The largest error of quantized weights, in steps of their layer."""
    return max(((value - weight).abs().amax() / weight.abs().amax() * 2 ** (BITS - 1)).item()
               for value, weight in zip(values, weights, strict=True))


def test_bit_planes(device, pytestconfig):
    torch.manual_seed(0)
    weights = [torch.randn(shape, device=device) / shape[-1] for shape in resnet20()]
    upstream = [torch.randn_like(weight) * 1e-3 for weight in weights]
    methods = {"round_clamp_lsb_foreach": Method(RoundClamp(weights), upstream),
               "two planes a bit (BSQ)": Method(Planes(PlanesBSQ, weights), upstream),
               "gated planes (CSQ)": Method(Planes(PlanesCSQ, weights), upstream)}
    for name, method in methods.items():
        with torch.no_grad():
            error = close(method.quantizer()[0], weights)
        assert error < (1.5 if "CSQ" not in name else 4), f"{name} is not the weight it began with: {error} steps off"
        method.step()
    for _ in range(STEPS):
        for method in methods.values():
            method.time()
    rows = {name: method.row() for name, method in methods.items()}
    ours = rows["round_clamp_lsb_foreach"]
    print(f"\n{'ResNet-20 at 8 bits, ' + device:28}{'parameters':>22}{'bytes':>24}{'ms a step':>20}")
    for name, row in rows.items():
        cells = [f"{row[key]:,.{0 if key != 'ms' else 2}f} ({row[key] / ours[key]:.1f} x)" for key in WANTED]
        print(f"{name:28}{cells[0]:>22}{cells[1]:>24}{cells[2]:>20}")
    if pytestconfig.getoption("--mbq-small"):
        return
    planes = rows["two planes a bit (BSQ)"]
    missed = [f"{key}: {planes[key] / ours[key]:.2f} x ours, wanted {wanted}" for key, wanted in WANTED.items()
              if planes[key] < wanted * ours[key]]
    if missed:
        pytest.fail("; ".join(missed))
