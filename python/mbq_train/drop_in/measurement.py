"""What replacing a module gains, measured on the inputs that an example gives it.

All is done on copies, so that observers, statistics and attributes of the model, and the random numbers that it draws
next, stay as they were.
"""

import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from ..conversion.call_order import arguments
from ..quantize.bits import same_random_numbers
from .family import Replace
from .replacement import replace

SECONDS, ROUNDS = 0.03, 5  # of every measurement at least


@dataclass(frozen=True)
class Timing:
    """Seconds of a forward and backward of one module, the original's and ours."""

    original: float
    fused: float

    @property
    def gain(self) -> float:
        """Return how many times faster ours is."""
        return self.original / self.fused


def measure(model: nn.Module, example, verdicts: Mapping[str, Replace]) -> dict[str, Timing]:
    """Return the timing of each module of `model` that a verdict names and a forward with `example` reaches.

    Modules of one configuration that get tensors of one shape are timed once.
    """
    modules, timings = dict(model.named_modules()), {}
    with torch.enable_grad(), same_random_numbers(model):
        for names, args, kwargs in _calls(model, example, verdicts):
            timing = _timing(modules[names[0]], verdicts[names[0]], args, kwargs)
            timings.update(dict.fromkeys(names, timing))
    return timings


def _calls(model: nn.Module, example, verdicts: Mapping[str, Replace]) -> list[tuple[list[str], tuple, dict]]:
    """Return (names, args, kwargs) of the first calls of the modules, those of one configuration together."""
    example_args, example_kwargs = arguments("accelerate", example)
    model = copy.deepcopy(model)
    modules, seen, calls = dict(model.named_modules()), set(), {}

    def record(name, module, args, kwargs):
        if name not in seen:
            seen.add(name)
            key = _configuration(module, verdicts[name], args, kwargs)
            if key not in calls:
                calls[key] = ([], *_leaves((args, kwargs)))
            calls[key][0].append(name)

    for name in verdicts:
        modules[name].register_forward_pre_hook(functools.partial(record, name), with_kwargs=True)
    try:
        model(*example_args, **example_kwargs)
    except Exception as error:
        raise ValueError(f"accelerate: example must be what {type(model).__name__} can be called with, got an error "
                         f"from its forward ({type(error).__name__}: {error})") from error
    return list(calls.values())


def _leaves(values):
    """Return `values` with leaves of autograd in the place of tensors."""
    return tree_map(lambda leaf: leaf.detach().clone().requires_grad_(leaf.requires_grad)
                    if isinstance(leaf, torch.Tensor) else leaf, values)


def _configuration(module: nn.Module, verdict: Replace, args: tuple, kwargs: dict) -> tuple:
    described = [_description(leaf) for leaf in tree_leaves((args, kwargs))]
    state = [(name, _description(value)) for part in module.modules() for name, value in sorted(
        {**vars(part), **part._parameters, **part._buffers}.items()) if not name.startswith("_")]
    return type(module), verdict.forward, repr(verdict.plan), repr(described), repr(state)


def _description(value):
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    return value if isinstance(value, (bool, int, float, str, torch.dtype, torch.qscheme)) else type(value)


def _timing(module: nn.Module, verdict: Replace, args: tuple, kwargs: dict) -> Timing:
    original, fused = copy.deepcopy(module), copy.deepcopy(module)
    replace(fused, verdict.forward, verdict.plan)
    steps = [_step(original, args, kwargs), _step(fused, args, kwargs)]
    best = [float("inf")] * 2
    rounds, end = 0, time.perf_counter() + SECONDS
    while rounds < ROUNDS or time.perf_counter() < end:
        for index, step in enumerate(steps):
            best[index] = min(best[index], _seconds(step))
        rounds += 1
    return Timing(*best)


def _step(module: nn.Module, args: tuple, kwargs: dict) -> Callable[[], None]:
    """Return a function that does a forward and backward of `module`, after a first one."""
    inputs = [leaf for leaf in (*tree_leaves((args, kwargs)), *module.parameters())
              if isinstance(leaf, torch.Tensor) and leaf.requires_grad]

    def step() -> None:
        results = [leaf for leaf in tree_leaves(module(*args, **kwargs))
                   if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        if results and inputs:
            torch.autograd.grad(results, inputs, [torch.ones_like(result) for result in results], allow_unused=True)

    step()
    return step


def _seconds(step: Callable[[], None]) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start
