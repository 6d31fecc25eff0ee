"""Time several callables against each other in one run: round-robin, so that drift hits all of them alike."""

import ctypes
import gc
import math
import statistics
import time

import torch

SAMPLE_S = 2e-3  # a wall-clock sample lasts at least this long: short calls are repeated inside it
SHARE_S = 0.5  # time spent on one candidate, unless its fewest samples take longer
FEWEST, MOST = 5, 40
SLOW_S, SLOW_RATIO = 0.4, 4  # slower than both this and 4 x the fastest: one sample
GRAPH_CALLS = 10  # steps in one CUDA graph
FLUSH_BYTES = 256 * 2**20  # more than any L2 cache holds
HEAD_START = 2_000_000  # GPU cycles, about 1 ms, in which the host launches a step before its time begins


def keep_memory() -> bool:
    """Make glibc's malloc keep freed memory for the next call instead of giving it back; False where it is not glibc.

    Otherwise every large result is fresh memory, and its page faults, not the kernels, decide the time: a 4 MB clone
    then takes from 0.2 to 6 ms, by the luck of the heap. CUDA's allocator keeps memory as well.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mmap_max, trim_threshold = -4, -1  # from malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1))


def release_memory() -> None:
    """Give what malloc keeps back to the system, between cases: pieces left by one case do not fit the next."""
    gc.collect()
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)


def summary(samples: list[float]) -> dict:
    """Median and 20/80 quantiles, in milliseconds."""
    deciles = statistics.quantiles(samples, n=10, method="inclusive") if len(samples) > 1 else samples * 9
    return {"ms_p20": deciles[1] * 1e3, "ms_p50": deciles[4] * 1e3, "ms_p80": deciles[7] * 1e3,
            "samples": len(samples)}


def wall_clock(steps: dict, contexts: dict) -> dict[str, list[float]]:
    """Seconds per call of every step on the CPU. A sample is the mean of enough calls to outlast the clock's noise."""
    warm = {}
    for name, step in steps.items():
        with contexts[name]():
            warm[name] = _once(step, 1)
    fastest = min((seconds for name, seconds in warm.items() if name != "copy"), default=0.0)
    slow = max(SLOW_S, SLOW_RATIO * fastest)
    samples = {name: [seconds] if seconds > slow else [] for name, seconds in warm.items()}
    repeats = {name: max(1, math.ceil(SAMPLE_S / warm[name])) for name in steps if not samples[name]}
    spent = dict.fromkeys(steps, 0.0)
    gc.collect()
    gc.disable()
    try:
        while active := [name for name in repeats if len(samples[name]) < FEWEST
                         or (spent[name] < SHARE_S and len(samples[name]) < MOST)]:
            for name in active:
                with contexts[name]():
                    samples[name].append(_once(steps[name], repeats[name]))
                spent[name] += samples[name][-1] * repeats[name]
    finally:
        gc.enable()
    return samples


def _once(step, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def cuda_events(steps: dict, contexts: dict, rounds: int = 30, dirty: bool = False) -> dict[str, list[float]]:
    """Return seconds per call from CUDA events, nothing of a step's data in the L2 cache before each call.

    The cache is overwritten, and then other memory is read, more than the cache holds, so that its lines are clean.
    dirty leaves them as they were written, as triton.testing.do_bench does: a step that mostly reads then pays for
    lines that it must write back and a copy does not, because the copy leaves as many of its own behind.

    The GPU waits first, so that a step of few launches is in its queue before its time begins: what is counted is the
    GPU's work, and the host's only where launching takes it longer than HEAD_START.
    """
    flush, other = (torch.zeros(FLUSH_BYTES // 4, device="cuda") for _ in range(2))
    events = {name: [] for name in steps}
    for step_round in range(rounds + 3):
        for name, step in steps.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with contexts[name]():
                flush.zero_()
                if not dirty:
                    other.amax()
                torch.cuda._sleep(HEAD_START)
                start.record()
                step()
                end.record()
            if step_round >= 3:  # the first rounds warm up
                events[name].append((start, end))
        torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) / 1e3 for a, b in pairs] for name, pairs in events.items()}


def cuda_graph(step, context) -> torch.cuda.CUDAGraph:
    """A graph of GRAPH_CALLS steps; raises RuntimeError when the step synchronises with the host.

    No launch cost is left in it, and only the first of the steps meets a cold L2 cache.
    """
    with context():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(GRAPH_CALLS):
                step()
    return graph
