"""How long fake-quantization takes in other libraries' modules, with accelerate, and compiled; and whole steps.

    python bench/accelerate_times.py [--width 256] [--seconds 2]

Networks of four linear layers, width x width, on as many rows: every quantized tensor has width^2 elements, and all are
those of tests/accelerated_networks.py. The forward and backward of every quantizer are timed on the tensors that it
sees in a step, and summed; lsq-layers: with the products in them. Smallest of turns, time of one processor.
"""

import argparse
import copy
import functools
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / room) for room in ("", "python", "tests")]

from accelerated_networks import FAMILIES, made, plain, step_of  # noqa: E402
from report import table  # noqa: E402

from mbq_train import accelerate  # noqa: E402

DEPTH = 4
HEAD = ("family", "quantizers, us: original", "accelerated", "compiled", "step, ms: original", "accelerated",
        "compiled", "unquantized")


def smallest(calls: list[Callable], seconds: float) -> list[float]:
    """Return the processor's seconds of the fastest call of each, in turns, after three that compile what is to be."""
    for call in calls * 3:
        call()
    best, end = [float("inf")] * len(calls), time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for index, call in enumerate(calls):
            start = time.process_time()
            call()
            best[index] = min(best[index], time.process_time() - start)
    return best


def recorded(model: nn.Module, names: set[str], rows: int) -> dict[str, tuple]:
    """Return what the modules of these names are called with in a step, as leaves of autograd."""
    calls, hooks = {}, []
    leaf = lambda value: value.detach().requires_grad_(value.requires_grad) if isinstance(  # noqa: E731
        value, torch.Tensor) else value
    for name in names:
        hooks.append(model.get_submodule(name).register_forward_pre_hook(
            lambda module, given, name=name: calls.setdefault(name, tuple(map(leaf, given)))))
    step_of(model)(rows)
    for hook in hooks:
        hook.remove()
    return calls


def pass_of(module: nn.Module, given: tuple) -> Callable[[], None]:
    """Return a forward and backward of `module`."""
    leaves = [value for value in (*given, *module.parameters())
              if isinstance(value, torch.Tensor) and value.requires_grad]
    grad = torch.ones_like(module(*given))
    return lambda: torch.autograd.grad(module(*given), leaves, grad, allow_unused=True)


def line_of(name: str, rows: int, seconds: float) -> list[str]:
    original = made(name, rows, DEPTH)
    step_of(original)(rows)
    ours, compiled = copy.deepcopy(original), torch.compile(copy.deepcopy(original))
    replaced = {entry.name for entry in accelerate(ours).replaced}
    torch.manual_seed(1)
    calls = recorded(original, replaced, rows)
    modules = [model.get_submodule(part) for model in (original, ours) for part in calls]
    passes = [pass_of(module, given) for module, given in zip(modules, [*calls.values()] * 2, strict=True)]
    parts = [torch.compile(copy.deepcopy(original.get_submodule(part))) for part in calls]
    passes += [pass_of(module, given) for module, given in zip(parts, calls.values(), strict=True)]
    times = smallest(passes, seconds / len(calls))
    quantizers = [sum(times[first:first + len(calls)]) for first in range(0, len(times), len(calls))]
    models = original, ours, compiled, plain(rows, DEPTH)
    steps = smallest([functools.partial(step_of(model), rows) for model in models], seconds)
    return [f"{name} ({len(calls)})", *(_cells([1e6 * value for value in quantizers], 0)),
            *_cells([1e3 * value for value in steps], 2)]


def _cells(values: list[float], digits: int) -> list[str]:
    return [f"{values[0]:.{digits}f}", *(f"{value:.{digits}f} ({values[0] / value:.2f} x)" for value in values[1:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    warnings.simplefilter("ignore")
    print(table(HEAD, [line_of(name, arguments.width, arguments.seconds) for name in arguments.families]))


if __name__ == "__main__":
    main()
