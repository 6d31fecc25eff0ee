"""Activation checkpointing: a block that runs again in backward runs at the bit-width of its forward."""

import contextlib
import functools
import threading
import weakref

import torch
from torch.utils import checkpoint

_followed = weakref.WeakSet()  # every BitState there is
_running = threading.local()  # .again: how many blocks run again in this thread, one within the other


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
        checkpoint._checkpoint_without_reentrant_generator = _without_reentrant(
            checkpoint._checkpoint_without_reentrant_generator)


def check_recomputation(layer) -> None:
    """Raise RuntimeError where `layer` runs again in backward by other means than torch.utils.checkpoint.

    Nothing tells then which bit-width the first forward had. A model whose bit-width never changed has only one.
    """
    if torch._C._current_graph_task_id() == -1 or getattr(_running, "again", 0):
        return
    quantizer = layer.weight_quantizer
    if quantizer.bit_state.changed:
        raise RuntimeError(f"{quantizer.layer_name}: a forward within backward must be a recomputation of torch.utils.checkpoint, "
                           "because others do not keep the bit-width of the first forward, got another one")


def _reentrant(forward):
    @functools.wraps(forward)
    def with_states(ctx, run_function, *args):
        again = _as_now(run_function)
        outputs = forward(ctx, run_function, *args)
        ctx.run_function = again
        return outputs
    return with_states


def _without_reentrant(generator):
    @functools.wraps(generator)
    def with_states(fn, *args, **kwargs):  # fn is called for the recomputation alone
        return generator(_as_now(fn), *args, **kwargs)
    return with_states


def _as_now(function):
    """Return `function`, to be called while every state is as it is now."""
    # A state that another thread selects belongs to a view of that thread: it must not change under its forwards.
    thread = threading.get_ident()
    snapshots = [(state, state.snapshot()) for state in _followed if state.thread == thread]

    @functools.wraps(function, updated=())
    def again(*args, **kwargs):
        with _states_as(snapshots):
            return function(*args, **kwargs)
    return again


@contextlib.contextmanager
def _states_as(snapshots):
    """Give the states the `snapshots` inside the block, and what they had before afterwards."""
    before = [(state, state.snapshot()) for state, _ in snapshots]
    _running.again = getattr(_running, "again", 0) + 1
    try:
        for state, snapshot in snapshots:
            state.restore(snapshot)
        yield
    finally:
        _running.again -= 1
        for state, snapshot in before:
            state.restore(snapshot)
