"""The most memory that a call takes beyond what was held before it, whoever allocates it; and what a graph saves."""

import itertools
from collections.abc import Callable
from pathlib import Path

import timing
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak(step, device: str) -> int | None:
    """Bytes; on the CPU of resident memory, as Linux counts it; None where it does not. The step must be warm."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    timing.release_memory()
    try:
        _CLEAR.write_text("5")  # the peak starts again from here
    except OSError:
        return None
    before = _resident("VmRSS")
    step()
    return max(0, _resident("VmHWM") - before)


def tensor_bytes(call: Callable) -> tuple[object, list[int]]:
    """Return call()'s result, and the bytes of CPU tensors beyond those before it, after each allocation and release.

    Every tensor that PyTorch's allocator gives is counted, those inside operators too; what libraries and kernels take
    from the system themselves is not.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return result, [0, *itertools.accumulate(event.nbytes() for event in events)]


def kept_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Return the bytes of CPU tensors that live on with the result of forward(), without the result itself: what its
    graph saves, in whatever way, of tensors that forward() makes."""
    out, held = tensor_bytes(forward)
    return held[-1] - out.untyped_storage().nbytes()


def saved_bytes(call: Callable) -> int:
    """Return the bytes of the tensors that autograd saves in call(), those that live anyway too, each storage once."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in storages.values())
