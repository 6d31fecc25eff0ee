"""What check_codes.py feeds the quantizers: every tie, edge and oddity of a setting, and the codes in NumPy."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import mbq_kernels as mbq
from mbq_train.quantize.bits import code_range

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16,
            torch.float64: torch.int64}
SCALES = (0.125, 1 / 3, 1.0, 0.0371, 2.0**-20, 7.77, 1e-4, 2.0**-130)  # the last one is subnormal in float32
CHANNELS = 4


@dataclass(frozen=True)
class Quantizer:
    """One op of the sweep. call(setting, inputs, options) -> its results; affine: a zero point instead of an offset,
    x * (1 / scale), and at signed 1 bit the three codes -1, 0, 1."""
    bit_lists: tuple[tuple[int, ...], ...]
    call: Callable
    affine: bool = False


def _affine(setting, inputs, options):
    lo, hi = code_range(setting.bits[0], setting.signed)
    return [mbq.fake_quantize_affine(inputs.x, inputs.scales[0], inputs.offsets[0], quant_min=lo, quant_max=hi,
                                     axis=setting.axis)]


EVERY_BIT_WIDTH = tuple((b,) for b in range(1, 9))
QUANTIZERS = {
    "fake_quantize": Quantizer(EVERY_BIT_WIDTH, lambda setting, inputs, options: [mbq.fake_quantize(
        inputs.x, inputs.scales[0], inputs.offsets and inputs.offsets[0], bits=setting.bits[0], **options)]),
    "fake_quantize_multi": Quantizer(((8, 6, 4, 2), (1, 3, 5, 7)), lambda setting, inputs, options: list(
        mbq.fake_quantize_multi(inputs.x, inputs.scales, inputs.offsets, bits=setting.bits, **options))),
    "fake_quantize_affine": Quantizer(EVERY_BIT_WIDTH, _affine, affine=True),
}


@dataclass(frozen=True)
class Setting:
    op: str
    dtype: torch.dtype
    bits: tuple[int, ...]
    signed: bool
    axis: int | None
    offset: bool

    @property
    def affine(self) -> bool:
        return QUANTIZERS[self.op].affine


def settings(dtypes):
    """Every combination; an affine quantizer always has a zero point."""
    for op, quantizer in QUANTIZERS.items():
        offsets = (True,) if quantizer.affine else (False, True)
        for choice in itertools.product(dtypes, quantizer.bit_lists, (True, False), (None, 0, -1), offsets):
            yield Setting(op, *choice)


class Inputs:
    """x, scales and offsets (zero points for affine) of one call; x has about `count` values, no fewer than the odd
    ones: ties, edges and their neighbours, subnormals, infinities, NaN, both zeros, all patterns of 16-bit dtypes."""

    def __init__(self, setting: Setting, count: int, generator, turn: int):
        channels = 1 if setting.axis is None else CHANNELS
        wide = torch.float64 if setting.dtype == torch.float64 else torch.float32
        usable = SCALES[:-1] if setting.affine else SCALES  # affine's 1 / scale must be finite
        pick = lambda k: [usable[(turn + 3 * c + 5 * k) % len(usable)] for c in range(channels)]  # noqa: E731
        self.scales = [torch.tensor(pick(k), dtype=wide) for k in range(len(setting.bits))]
        self.offsets = None
        if setting.affine:
            lo, hi = code_range(setting.bits[0], setting.signed)
            self.offsets = [torch.linspace(lo, hi, channels + 2, dtype=wide)[1:-1].round()]
        elif setting.offset:
            self.offsets = [s * (0.75 if turn % 2 else -3.3) for s in self.scales]
        count //= channels * len(setting.bits)
        rows = [self._row(setting, c, count, generator) for c in range(channels)]
        length = max(len(row) for row in rows)
        rows = [torch.cat([row, row[:length - len(row)]]) for row in rows]
        self.x = rows[0] if setting.axis is None else torch.stack(rows, dim=setting.axis)

    def _row(self, setting, channel, count, generator):
        parts = [_oddities(setting.dtype)]
        for k, bits in enumerate(setting.bits):
            scale = self.scales[k][channel].double()
            lo, hi = code_range(bits, setting.signed)
            start = 0.0 if self.offsets is None else self.offsets[k][channel].double()
            if setting.affine:
                lo, hi, start = lo - start, hi - start, 0.0
            grid = torch.arange(2 * lo - 4, 2 * hi + 5, dtype=torch.float64) / 2  # codes and ties, two beyond each edge
            parts.append(_with_neighbours((grid * scale + start).to(setting.dtype)))
            parts.append(((torch.rand(max(count // len(setting.bits), 8), generator=generator, dtype=torch.float64)
                           * (hi - lo + 4) + lo - 2) * scale + start).to(setting.dtype))
        if setting.dtype.itemsize == 2 and count > 2**14:
            parts.append(torch.arange(-(2**15), 2**15).to(torch.int16).view(setting.dtype))
        return torch.cat(parts)

    def to(self, device):
        other = copy.copy(self)
        other.x, other.scales = self.x.to(device), [s.to(device) for s in self.scales]
        other.offsets = self.offsets and [o.to(device) for o in self.offsets]
        return other


def _with_neighbours(x):
    """x and the representable values one ulp to both sides (of 0: the smallest subnormal, and a NaN pattern)."""
    bits = x.view(INTEGERS[x.dtype])
    return torch.cat([x, (bits + 1).view(x.dtype), (bits - 1).view(x.dtype)])


def _oddities(dtype):
    info = torch.finfo(dtype)
    positive = torch.tensor([0.0, info.tiny, info.max, 1.0, torch.inf, info.smallest_normal / 2], dtype=dtype)
    small = torch.arange(1, 6).to(INTEGERS[dtype]).view(dtype)  # the smallest subnormals
    positive = torch.cat([_with_neighbours(positive[1:4]), positive, small])
    return torch.cat([positive, -positive, torch.tensor([torch.nan], dtype=dtype)])


def numpy_codes(setting: Setting, inputs: Inputs) -> list[torch.Tensor]:
    """The contract in NumPy: IEEE operations of the arithmetic's dtype, one at a time."""
    kind = np.float64 if setting.dtype == torch.float64 else np.float32
    x = inputs.x.to(inputs.scales[0].dtype).numpy()
    shape = [1] * x.ndim
    if setting.axis is not None:
        shape[setting.axis] = -1
    results = []
    with np.errstate(all="ignore"):
        for k, bits in enumerate(setting.bits):
            scale = inputs.scales[k].numpy().reshape(shape)
            offset = kind(0) if inputs.offsets is None else inputs.offsets[k].numpy().reshape(shape)
            lo, hi = (kind(bound) for bound in code_range(bits, setting.signed))
            if setting.affine:
                code = np.clip(np.rint(x * (kind(1) / scale)) + offset, lo, hi)
                y = torch.from_numpy((code - offset) * scale).to(setting.dtype)
            else:
                v = (x - offset) / scale
                code = np.where(np.isnan(v), v, np.where(v < 0, lo, hi)) if lo == -hi else np.rint(np.clip(v, lo, hi))
                y = torch.from_numpy(code * scale + offset)
            results.append(y)
    return results
