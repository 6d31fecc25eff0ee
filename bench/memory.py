"""The most memory that a call takes beyond what was held before it, whoever allocates it."""

from pathlib import Path

import timing
import torch

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
