"""How GradNormScorer runs a network and its graph: the modes around a forward, and backwards that leave nothing."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.checkpoint

from .calls import Calls
from .shared import SharedPaths


def profiles_of(calls: Calls, losses: torch.Tensor, paths: SharedPaths | None,
                factors: torch.Tensor) -> tuple[dict, dict]:
    """Return (of layers' outputs, of nodes) from a backward of the weighted losses; the graph stays."""
    nodes = None if paths is None else paths.profiles()
    try:
        with calls.profiled(len(losses)) as profiles:
            run_backward(losses, factors.to(losses.dtype), calls.anchor, paths, retain_graph=True)
    finally:
        if nodes is not None:
            nodes.close()
    return profiles, {} if nodes is None else nodes.found


def run_backward(losses: torch.Tensor, factors: torch.Tensor, anchor: torch.Tensor, paths: SharedPaths | None,
                 retain_graph: bool = False) -> None:
    """Run the graph from the losses to its beginnings, and leave no gradient anywhere."""
    if not losses.requires_grad:
        return
    if paths is None:
        losses.backward(factors, retain_graph=retain_graph)
        return
    ends = [anchor, *(p for p, _ in paths.parameters.values())]
    torch.autograd.grad(losses, ends, factors, retain_graph=True, allow_unused=True)


@contextlib.contextmanager
def without_reentrant_checkpoints() -> Iterator[None]:
    """Let torch's reentrant checkpoints run what they are given once, with a graph, where they would make it again in
    the backward: the inputs of layers are kept anyway, and a graph within a backward is not seen from outside."""
    function = torch.utils.checkpoint.CheckpointFunction
    own, apply = vars(function).get("apply"), function.apply

    def run(call, preserve_rng_state, *args):
        if any(isinstance(value, torch.Tensor) and value.requires_grad for value in args):
            return call(*args)
        return apply(call, preserve_rng_state, *args)  # without gradients, as in a training

    function.apply = run
    try:
        yield
    finally:
        if own is None:
            del function.apply
        else:
            function.apply = own


def without_compilation() -> contextlib.AbstractContextManager:
    """Let compiled parts run as they are written: their graphs know no hooks."""
    compiled = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


def detached(value: Any) -> Any:
    """Return `value`, without its graph where it is a tensor."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def as_graph_input(value: Any) -> Any:
    """Return a tensor of which a graph can begin: an alias, which requires a gradient where `value` does."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach().requires_grad_(value.requires_grad)
