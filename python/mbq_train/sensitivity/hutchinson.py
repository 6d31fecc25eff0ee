"""hessian_traces: the trace of the Hessian's block of every weight, by Hutchinson's estimator."""

import contextlib
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..quantize.bits import FLOAT, bit_states, in_mode, same_random_numbers, set_bits
from .perturbation import quantized_weights

_ROUND = 5  # probes that share one graph of the gradient, and between two looks at the tolerance


@dataclass(frozen=True)
class Trace:
    """An estimate of tr(H_ll), the trace of the Hessian's diagonal block of one weight.

    value: the mean over the probes; error: its standard error; parameters: elements of the weight.
    """

    value: float
    error: float
    parameters: int

    @property
    def mean(self) -> float:
        """Return the trace per element, at least 0: where the estimate is negative the loss does not grow to second
        order, and nothing speaks against quantizing the layer (our choice)."""
        return max(self.value, 0.0) / max(self.parameters, 1)


def hessian_traces(model: nn.Module, batches, *, weights: Mapping[str, nn.Parameter] | None = None,
                   loss: Callable = F.cross_entropy, probes: int = 50, tolerance: float = 0.05, seed: int = 0,
                   on_probe: Callable | None = None) -> dict[str, Trace]:
    """Estimate, for every weight l, tr(H_ll) of the float network's mean loss over `batches`.

    tr(H_ll) = E[v_l^T (H v)_l] with v of independent signs: one product with the whole Hessian serves all weights,
    because the expectation of v_l^T H_lk v_k is 0 for k != l. The network runs in eval mode at 32 bits, and is left as
    it was. The same seed gives the same probes on every device.

    Args:
        model: any module; what `convert` returned is measured at 32 bits.
        batches: a sequence of (images, labels, ...), a batch each; they weigh by their number of images.
        weights: Parameters of the model by the names of the result [those that `convert` quantizes, by layer].
        loss: (outputs, labels) -> the mean loss, twice differentiable.
        probes: the most probes to take, at least 2.
        tolerance: stop once the standard error of every trace is at most this share of it.
        seed: of the probes.
        on_probe: called after every probe with how many are done, and `probes`.

    Raises:
        ValueError: no weights or batches; probes or tolerance out of range; a weight that is not the model's; a
        Hessian that is NaN or infinite.

    Reference: Hutchinson, 1989; Dong et al., "HAWQ-V2", 2019, arXiv 1911.03852, eq. 7-9.
    """
    weights, batches = dict(quantized_weights(model) if weights is None else weights), list(batches)
    _check(weights, batches, probes, tolerance)
    names = _names(model, weights)
    values = {names[key]: weight.detach() for key, weight in weights.items()}
    draw = torch.Generator().manual_seed(seed)
    samples = {name: [] for name in values}
    with _measurable(model):
        while (done := len(next(iter(samples.values())))) < probes and not _settled(samples, tolerance):
            signs = [_signs(values, draw) for _ in range(min(_ROUND, probes - done))]
            for number, sample in enumerate(_quadratic_forms(model, values, batches, loss, signs), start=done + 1):
                for name, value in sample.items():
                    samples[name].append(value)
                if on_probe is not None:
                    on_probe(number, probes)
    return {key: _trace(samples[names[key]], weight.numel()) for key, weight in weights.items()}


def _quadratic_forms(model, values, batches, loss, signs) -> list[dict[str, float]]:
    """Return, for each probe in `signs` and each weight, v_l^T (H v)_l of the mean loss over the batches."""
    total = sum(len(images) for images, *_ in batches)
    sums = [dict.fromkeys(values, 0.0) for _ in signs]
    for images, labels, *_ in batches:
        def objective(values, images=images, labels=labels):
            return loss(torch.func.functional_call(model, values, (images,)), labels)

        _, product = torch.func.vjp(torch.func.grad(objective), values)
        for probe, forms in zip(signs, sums, strict=True):
            (products,) = product(probe)
            for name, vector in products.items():
                form = (vector.double() * probe[name].double()).sum().item() * len(images) / total
                if not math.isfinite(form):
                    raise ValueError(f"hessian_traces: the Hessian must be finite, got {form} in {name}")
                forms[name] += form
    return sums


def _signs(values, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """Return a Rademacher probe, drawn on the CPU so that it is the same for every device."""
    return {name: (2 * torch.randint(2, value.shape, generator=draw) - 1).to(value) for name, value in values.items()}


def _settled(samples, tolerance: float) -> bool:
    traces = [_trace(values, 1) for values in samples.values() if len(values) > 1]
    return bool(traces) and all(trace.error <= tolerance * abs(trace.value) for trace in traces)


def _trace(samples: list[float], parameters: int) -> Trace:
    return Trace(statistics.fmean(samples), statistics.stdev(samples) / math.sqrt(len(samples)), parameters)


@contextlib.contextmanager
def _measurable(model: nn.Module):
    """Yield `model` in eval mode at 32 bits, without kernels of attention that have no second derivative."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with in_mode(model, training=False), same_random_numbers(model), sdpa_kernel(SDPBackend.MATH):
            if bit_states(model):
                set_bits(model, FLOAT)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _names(model: nn.Module, weights) -> dict[str, str]:
    """Return the model's own name for each of `weights`."""
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    for key, weight in weights.items():
        if id(weight) not in own:
            raise ValueError(f"hessian_traces: weights must be Parameters of {type(model).__name__}, got {key}, which "
                             "is not")
    return {key: own[id(weight)] for key, weight in weights.items()}


def _check(weights, batches, probes, tolerance) -> None:
    if not weights:
        raise ValueError("hessian_traces: weights must name at least one Parameter, got none")
    if not sum(len(images) for images, *_ in batches):
        raise ValueError("hessian_traces: batches must hold images, got none")
    if probes < 2:
        raise ValueError(f"hessian_traces: probes must be at least 2, for a standard error, got {probes}")
    if not tolerance >= 0:
        raise ValueError(f"hessian_traces: tolerance must be at least 0, got {tolerance}")
