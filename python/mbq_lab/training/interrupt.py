"""Ctrl-C and SIGTERM that end training between two steps, so that the checkpoint is whole."""

import contextlib
import signal
import sys


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and has written its checkpoint; `signal` is the number of what asked."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class StopRequest:
    """Which signal has asked for a stop, None so far."""

    signal: int | None = None


@contextlib.contextmanager
def stop_requests():
    """Yield a StopRequest that Ctrl-C and SIGTERM set inside the block; the second of them stops at once.

    Outside of the main thread, where Python delivers no signals, it is never set.
    """
    request, before = StopRequest(), {}

    def ask(number, frame):
        signal.signal(number, before[number])
        request.signal = number
        print("stopping after this step; again: at once, without a checkpoint", file=sys.stderr)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread
        pass
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
