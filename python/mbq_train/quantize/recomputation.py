"""Activation checkpointing: a block that runs again in backward runs at the bit-width of its forward."""

import contextlib
import functools
import sys
import threading
import weakref

import torch
from torch.utils import checkpoint

_followed = weakref.WeakSet()  # every BitState there is


class _Running(threading.local):
    """Of one thread: how many blocks run again, one within the other, and the snapshots that blocks take now."""

    def __init__(self):
        self.again, self.snapshots = 0, []


_running = _Running()


def follow_recomputation(state) -> None:
    """Have torch.utils.checkpoint run blocks again with what `state` said in their forward.

    Wraps, once a process, the two places where torch.utils.checkpoint keeps the function of a block until backward.
    torch.compile does not pass there: in its graphs the bit-width is an input.

    Args:
        state: has `snapshot` and `restore`; is let go when nothing else holds it.
    """
    _followed.add(state)
    if not getattr(checkpoint, "_mbq_follows", False):
        checkpoint._mbq_follows = True
        checkpoint.CheckpointFunction.forward = staticmethod(_reentrant(checkpoint.CheckpointFunction.forward))
        generator = _without_reentrant(checkpoint._checkpoint_without_reentrant_generator)
        checkpoint._checkpoint_without_reentrant_generator = generator
        if (composable := sys.modules.get("torch.distributed._composable.checkpoint_activation")) is not None:
            composable._checkpoint_without_reentrant_generator = generator  # it took the name before


def runs_at(state, layer_name: str) -> None:
    """Note, at the forward of a layer, that the blocks around it depend on `state`.

    Raises RuntimeError where the layer runs again in backward by other means than torch.utils.checkpoint: nothing tells
    then which bit-width the first forward had. A model whose bit-width never changed has only one.
    """
    for snapshots in _running.snapshots:
        snapshots.setdefault(state, state.snapshot())
    if state.changed and torch._C._current_graph_task_id() != -1 and not _running.again:
        raise RuntimeError(f"{layer_name}: a forward within backward must be a recomputation of "
                           "torch.utils.checkpoint, because others do not keep the bit-width of the first forward, "
                           "got another one")


def _reentrant(forward):
    @functools.wraps(forward)
    def with_states(ctx, run_function, *args):
        with _snapshots() as snapshots:
            outputs = forward(ctx, run_function, *args)
        ctx.run_function = _as_in(snapshots, run_function)
        return outputs
    return with_states


def _without_reentrant(generator):
    @functools.wraps(generator)
    def with_states(fn, *args, **kwargs):  # fn is called for the recomputation alone
        with _snapshots() as snapshots:
            yield from generator(_as_in(snapshots, fn), *args, **kwargs)
    return with_states


@contextlib.contextmanager
def _snapshots():
    """Yield what decides the forward inside the block, by state: of those that this thread selects, as they are now;
    of others when a layer runs at them. One that another thread selects may change under the forwards of that thread.
    """
    thread = threading.get_ident()
    snapshots = {state: state.snapshot() for state in _followed if state.thread == thread}
    _running.snapshots.append(snapshots)
    try:
        yield snapshots
    finally:
        _running.snapshots = [other for other in _running.snapshots if other is not snapshots]


def _as_in(snapshots: dict, function):
    """Return `function`, to be called while the states are as in `snapshots`."""
    @functools.wraps(function, updated=())
    def again(*args, **kwargs):
        with _states_as(snapshots):
            return function(*args, **kwargs)
    return again


@contextlib.contextmanager
def _states_as(snapshots: dict):
    """Give the states the `snapshots` inside the block, and what they had before afterwards."""
    before = [(state, state.snapshot()) for state in snapshots]
    _running.again += 1
    try:
        for state, snapshot in snapshots.items():
            state.restore(snapshot)
        yield
    finally:
        _running.again -= 1
        for state, snapshot in before:
            state.restore(snapshot)
