"""What the reference of every op on integer codes shares."""

import torch

from .quant_math import bounds


def codes_in_range(op: str, codes, bits: int, signed: bool):
    """Codes as int32, looked at on the CPU alone; elsewhere, where that would stop the host, those outside are cut."""
    lo, hi = (int(bound) for bound in bounds(bits, signed))
    wide = codes.int()
    if codes.device.type != "cpu":
        return wide.clamp(lo, hi)
    between = "and" if lo != -hi else "or"
    bad = (wide < lo) | (wide > hi) | ((wide == 0) if lo == -hi else torch.zeros_like(wide, dtype=torch.bool))
    if bad.any():
        first = int(wide[bad].flatten()[0])
        raise RuntimeError(f"{op}: codes must be {'between ' if lo != -hi else ''}{lo} {between} {hi} at {bits} "
                           f"bit{'s' if bits > 1 else ''}, got {first}")
    return wide


def codes_dtype(signed: bool) -> torch.dtype:
    return torch.int8 if signed else torch.uint8
