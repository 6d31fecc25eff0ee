"""round_clamp and the ops on its last bits in check_codes.py: everything that comes out has the same bits."""

import itertools
from dataclasses import dataclass

import code_values as cv
import numpy as np
import torch

import mbq_kernels as mbq

LIMITS = (1.7, 0.3, 1e-3, 7.77, 0.0371, 1.0, 30.0, 2.0**-10)
BITS = ((8, 1), (8, 3), (6, 2), (4, 1), (3, 2), (2, 1))  # and how many of them may go
OPS = ("round_clamp", "extract_lsb", "lsb_penalty", "round_clamp_lsb", "round_clamp_lsb_foreach")


@dataclass(frozen=True)
class Setting:
    """limited: x is a weight within a limit, not u itself."""
    op: str
    dtype: torch.dtype
    bits: int
    k: int
    axis: int | None
    form: str
    limited: bool

    @property
    def options(self) -> dict:
        k = {} if self.op == "round_clamp" else {"k": self.k}
        return {"bits": self.bits, **k, "axis": self.axis, "form": self.form}


def settings_of(op: str):
    def settings(dtypes):
        for dtype, (bits, k), form in itertools.product(dtypes, BITS, ("offset", "sign-magnitude")):
            for axis, limited in ((None, True), (0, True), (-1, True), (None, False)):
                yield Setting(op, dtype, bits, k, axis, form, limited)
    return settings


def inputs_of(setting: Setting, count: int, generator, turn: int) -> tuple:
    """Return x, its limits or None, and an upstream gradient of x's shape and one of a penalty."""
    channels = 1 if setting.axis is None else cv.CHANNELS
    limits = torch.tensor([LIMITS[(turn + 3 * c) % len(LIMITS)] for c in range(channels)]).to(setting.dtype)
    rows = [_row(setting, limit, count // channels, generator) for limit in limits]
    x = cv.stacked(rows, setting.axis)
    grad = torch.randn(x.shape, generator=generator).to(setting.dtype)
    return x, limits.to(cv.wide(setting.dtype)) if setting.limited else None, grad, torch.tensor(0.75)


def _row(setting, limit, count, generator):
    u = torch.arange(2 * 2**setting.bits + 1, dtype=torch.float64) / (2 * 2**setting.bits)  # codes and ties
    lowest, highest = (-limit, limit) if setting.limited else (torch.zeros_like(limit), torch.ones_like(limit))
    grid = u if not setting.limited else torch.cat([u, -u]) if setting.form != "offset" else 2 * u - 1
    values = cv.hard_values(setting.dtype, grid * highest.double(), count, lowest.double(), highest.double(), generator,
                            count > 2**14)
    return values.nan_to_num(0.5).clamp(lowest, highest)  # the CPU takes nothing else


def _outputs(setting, x, limit) -> list:
    if setting.op != "round_clamp_lsb_foreach":
        outputs = getattr(mbq, setting.op)(x, limit=limit, **setting.options)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]
    limits = None if limit is None else [limit, limit]
    values, penalties, rates = mbq.round_clamp_lsb_foreach([x, x.flip(-1) if limit is None else x], limits=limits,
                                                           **setting.options)
    return [*values, penalties, rates]


def call(setting: Setting, inputs: tuple) -> cv.Results:
    x, limit, grad, grad_penalty = inputs
    x = x.detach().requires_grad_(setting.op != "extract_lsb")
    outputs = _outputs(setting, x, limit)
    graded = [y for y in outputs if y.requires_grad]
    upstream = [grad.to(y.dtype) if y.shape == x.shape else grad_penalty.to(y.dtype).expand(y.shape) for y in graded]
    grads = torch.autograd.grad(graded, x, upstream) if graded else ()
    return cv.Results([y.detach() for y in (*outputs, *grads)], [])


def numpy_results(setting: Setting, inputs: tuple) -> list[torch.Tensor]:
    """Return the outputs in NumPy: IEEE operations of the arithmetic's dtype, one at a time."""
    x, limit, *_ = inputs
    dtype, mirrored = cv.wide(setting.dtype), setting.form != "offset"
    form_of = setting.limited and not mirrored
    x, kind = x.to(dtype).numpy(), np.float64 if dtype == torch.float64 else np.float32
    shape = [1] * x.ndim
    if setting.axis is not None:
        shape[setting.axis] = -1
    limit = kind(1) if limit is None else limit.numpy().reshape(shape)
    half = kind(0.5 if form_of else 1)
    with np.errstate(all="ignore"):
        u = (np.abs(x) if mirrored else x) / limit * half + (1 - half)
    u = np.where(x == 0, 1 - half, u)
    steps = kind(2.0**setting.bits)
    fine, coarse = (np.minimum(np.rint(u * count), count - 1) for count in (steps, steps / kind(2.0**setting.k)))
    code = np.where(x < 0, 0 - fine, fine) if mirrored else fine - steps * (1 - half)
    value = torch.from_numpy(code * (limit / (steps * half - mirrored))).to(setting.dtype)
    lsbs = fine - kind(2.0**setting.k) * coarse
    counts = [torch.tensor(float(np.abs(lsbs).sum(dtype=np.float64))), torch.tensor((lsbs != 0).mean(dtype=np.float64))]
    counts = [count.to(dtype) for count in counts]
    return {"round_clamp": [value], "extract_lsb": [torch.from_numpy(lsbs.astype(np.int8))],
            "round_clamp_lsb": [value, *counts]}[setting.op]


NUMPY = dict.fromkeys(("round_clamp", "extract_lsb", "round_clamp_lsb"), numpy_results)  # the others give the same
SWEEPS = {op: cv.Sweep(settings_of(op), inputs_of, call, definition=NUMPY.get(op)) for op in OPS}
