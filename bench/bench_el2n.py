"""Scores, corrected weights and dynamic ranges against eager PyTorch and torch.compile of it.

    pytest bench/bench_el2n.py [--mbq-json FILE] [--mbq-small] [--mbq-device cpu|cuda]

bytes of a case = the main tensor's times what must move: el2n reads the logits once; the loss with its gradient reads
them twice and writes once; a corrected weight is read twice and written once a bit-width, its backward reads it and
the upstream gradients and writes one; norms read x_hat and gradients once; a dynamic range reads and writes once, with
its gradient reads three times and writes twice. The copy moves twice the main tensor.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import timing
import torch
import torch.nn.functional as F
from harness import BOTH, FORWARD, measure_calls, our_calls, wanted

import mbq_kernels as mbq

EAGER, COMPILED = "eager PyTorch", "torch.compile(eager)"
BITS = (8, 4, 2)


@dataclass(frozen=True)
class Score:
    """`make` gives the arguments of ours and eager, the main tensor first; `moves` times it are the bytes of a call."""
    op: str
    shape: str
    sizes: tuple[int, ...]
    make: Callable
    ours: Callable
    eager: Callable
    moves: float
    dtype: torch.dtype = torch.float32
    what: str = FORWARD
    device: str = "cpu"
    bits: tuple[int, ...] = ()
    axis: int | None = None

    @property
    def numel(self) -> int:
        return torch.Size(self.sizes).numel()

    @property
    def bytes(self) -> int:
        return int(self.moves * self.numel * self.dtype.itemsize)

    @property
    def name(self) -> str:
        return "-".join([self.op, self.shape, str(self.dtype).removeprefix("torch."), self.what])


def logits(case):
    x = torch.randn(case.sizes, device=case.device, dtype=case.dtype).requires_grad_(case.what == BOTH)
    return x, torch.randint(case.sizes[1], case.sizes[:1], device=case.device)


def eager_el2n(x, targets):
    return (x.float().softmax(-1) - F.one_hot(targets, x.shape[-1])).norm(dim=-1)


def with_gradient(function):
    """The results of function(x, ...) and the gradient in x of the first one's sum."""
    def both(x, *rest):
        results = function(x, *rest)
        return *results, torch.autograd.grad(results[0].sum(), x)[0]
    return both


def eager_loss(x, targets):
    return F.cross_entropy(x.float(), targets, reduction="none"), eager_el2n(x.detach(), targets)


def weights(case):
    w = torch.randn(case.sizes, device=case.device, dtype=case.dtype).requires_grad_(case.what == BOTH)
    scales = torch.rand(len(BITS), case.sizes[0], device=case.device) * 0.1 + torch.tensor([[0.02], [0.3], [0.9]],
                                                                                          device=case.device)
    return w, scales


def eager_correct(w_quant, w_ref):
    dims = list(range(1, w_quant.dim()))
    factor = w_ref.std(dims, keepdim=True) / (w_quant.std(dims, keepdim=True) + 1e-8)
    return factor.detach() * (w_quant - w_quant.mean(dims, keepdim=True).detach()) + w_ref.mean(dims, True).detach()


def eager_corrected(w, scales):
    outs = []
    for scale, bits in zip(scales, BITS, strict=True):
        v = w / scale.reshape(-1, *[1] * (w.dim() - 1))
        code = v.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        inside = v.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        quantized = (inside + (code - inside).detach()) * scale.reshape(-1, *[1] * (w.dim() - 1))
        outs.append(eager_correct(quantized, w))
    return torch.stack(outs)


def ours_corrected(w, scales):
    return torch.stack(mbq.fake_quantize_corrected(w, scales, bits=BITS, axis=0))


def tokens(case):
    return (torch.randn(case.sizes, device=case.device, dtype=case.dtype).requires_grad_(case.what == BOTH),)


def ours_dynamic(x):
    return mbq.fake_quantize_dynamic(x, quant_min=-128, quant_max=127)


def eager_dynamic(x):
    """torchao's arithmetic, a range per row."""
    rows = x.detach()
    least, greatest = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    scale = ((greatest - least) / 255).clamp(min=torch.finfo(x.dtype).smallest_normal)
    zero_point, scaled = (-128 - (least / scale).round()).clamp(-128, 127), x * (1 / scale)
    code = (scaled + (scaled.round() - scaled).detach() + zero_point).clamp(-128, 127)
    return (code - zero_point) * scale, scale[:, 0], zero_point[:, 0]


def gradients(case):
    return tuple(torch.randn(case.sizes, device=case.device, dtype=case.dtype) for _ in range(2))


def lookups(case):
    grads, = gradients(case)[:1]
    return grads, torch.randint(5000, case.sizes[:2], device=case.device)


def eager_embedding(grads, indices):
    """Gram products: no gradient per sample, but T x T."""
    same = (indices[:, :, None] == indices[:, None, :]).to(grads.dtype)
    return torch.einsum("ntu,ntu->n", same, grads @ grads.transpose(1, 2))


def eager_layer_norm(x, g):
    return (g * x).sum(1).square().sum(1) + g.sum(1).square().sum(1)


def eager_batch_norm(x, g):
    return (g * x).sum((2, 3)).square().sum(1) + g.sum((2, 3)).square().sum(1)


def ours_layer_norm(x, g):
    return mbq.sample_grad_norm_layer_norm(x, g, normalized_shape=x.shape[-1])


LOSS = {"make": logits, "ours": with_gradient(mbq.cross_entropy_el2n), "eager": with_gradient(eager_loss), "moves": 3}
CORRECTED = {"make": weights, "bits": BITS, "axis": 0}
CASES = [
    *(Score("el2n", shape, sizes, logits, mbq.el2n, eager_el2n, 1, dtype)
      for shape, sizes in (("65536x1000", (65536, 1000)), ("2048x128Ki", (2048, 131072)), ("65536x10", (65536, 10)))
      for dtype in (torch.float32, torch.bfloat16)),
    Score("cross_entropy_el2n", "65536x1000", (65536, 1000), **LOSS, what=BOTH),
    Score("cross_entropy_el2n", "2048x128Ki", (2048, 131072), **LOSS, what=BOTH),
    Score("fake_quantize_dynamic", "4096x4096", (4096, 4096), tokens, ours_dynamic, eager_dynamic, 2),
    Score("fake_quantize_dynamic", "4096x4096", (4096, 4096), tokens, with_gradient(ours_dynamic),
          with_gradient(eager_dynamic), 5, what=BOTH),
    Score("correct_weight_bias", "2048x2048", (2048, 2048), gradients, mbq.correct_weight_bias, eager_correct, 4),
    Score("fake_quantize_corrected", "512x512x3x3", (512, 512, 3, 3), **CORRECTED, ours=ours_corrected,
          eager=eager_corrected, moves=2 + len(BITS)),
    Score("fake_quantize_corrected", "512x512x3x3", (512, 512, 3, 3), **CORRECTED, what=BOTH, moves=4 + 2 * len(BITS),
          ours=with_gradient(lambda w, s: (ours_corrected(w, s),)),
          eager=with_gradient(lambda w, s: (eager_corrected(w, s),))),
    Score("sample_grad_norm_embedding", "64x512x256", (64, 512, 256), lookups,
          lambda g, i: mbq.sample_grad_norm_embedding(i, g), eager_embedding, 1),
    Score("sample_grad_norm_layer_norm", "64x197x384", (64, 197, 384), gradients, ours_layer_norm, eager_layer_norm, 2),
    Score("sample_grad_norm_batch_norm", "64x64x56x56", (64, 64, 56, 56), gradients, mbq.sample_grad_norm_batch_norm,
          eager_batch_norm, 2),
]


def flat(result):
    return result if isinstance(result, tuple) else (result,)


def check(case: Score, arguments, results: dict) -> dict:
    """{name: what was found}: against eager PyTorch in float64, of the same inputs."""
    wide = [a.detach().double().requires_grad_(a.requires_grad) if a.is_floating_point() else a for a in arguments]
    wanted = flat(case.eager(*wide))
    verdicts = {}
    for name, result in results.items():
        error = max(((one.double() - want).norm() / want.norm()).item()
                    for one, want in zip(flat(result), wanted, strict=True))
        # (a code of which float64 decides the tie otherwise is a step off)
        limit = 4e-3 if case.dtype != torch.float32 else 2e-4 if case.bits else 2e-5
        assert error <= limit, f"{name}: relative error {error:.3g} against float64, allowed {limit:.3g}"
        verdicts[name] = f"relative error {error:.2g}"
    return verdicts


def measure(case: Score):
    """Rows of every candidate, and our own call. Checks before it times."""
    torch._dynamo.reset()
    timing.release_memory()
    torch.manual_seed(0)
    arguments = case.make(case)
    compiled, main = torch.compile(case.eager), arguments[0].detach()
    calls = our_calls(case, lambda: case.ours(*arguments)) | {
        EAGER: (lambda: case.eager(*arguments), contextlib.nullcontext),
        COMPILED: (lambda: compiled(*arguments), contextlib.nullcontext), "copy": (main.clone, contextlib.nullcontext)}
    calls = {name: pair for name, pair in calls.items() if wanted(name)}
    return measure_calls(case, calls, lambda results: check(case, arguments, results), {})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scores(case, device, pytestconfig, record):
    if pytestconfig.getoption("--mbq-small"):
        case = replace(case, sizes=tuple(min(size, 24) for size in case.sizes))
    record(*measure(replace(case, device=device)))
