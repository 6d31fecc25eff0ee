"""The quantizers with a learned scale in check_codes.py: values and codes exactly, gradients of parameters as sums."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import code_values as cv
import numpy as np
import torch

import mbq_kernels as mbq
from mbq_train.quantize.bits import code_range

HIGH_BITS = 8  # of double rounding


@dataclass(frozen=True)
class Quantizer:
    """call(setting, x, scales, offsets) -> values or codes. affine: zero points instead of offsets, x * (1 / scale),
    and at signed 1 bit the three codes -1, 0, 1; double: one scale, of HIGH_BITS; integers: codes come out."""
    bit_lists: tuple[tuple[int, ...], ...]
    call: Callable
    affine: bool = False
    double: bool = False
    integers: bool = False


@dataclass(frozen=True)
class Setting:
    op: str
    dtype: torch.dtype
    bits: tuple[int, ...]
    signed: bool
    axis: int | None
    offset: bool
    half_up: bool = False
    form: tuple[str, str, str, bool] = ("reciprocal", "integer", "code", False)  # affine's options, from quotient on

    @property
    def kind(self) -> Quantizer:
        return QUANTIZERS[self.op]

    @property
    def options(self) -> dict:
        """Return what most ops take by name."""
        return {"signed": self.signed, "axis": self.axis, "out_dtype": cv.wide(self.dtype), "grad_factor": 1.0}

    def ratio(self, bits: int) -> float:
        """Return by how much a step at `bits` bits is wider than the scale that is given."""
        return 2.0 ** (HIGH_BITS - bits) if self.kind.double else 1.0


def _single(setting, x, scales, offsets):
    return [mbq.fake_quantize(x, scales[0], offsets and offsets[0], bits=setting.bits[0], **setting.options)]


def _multi(setting, x, scales, offsets):
    return mbq.fake_quantize_multi(x, scales, offsets, bits=setting.bits, **setting.options)


def _foreach(setting, x, scales, offsets):
    rows = mbq.fake_quantize_foreach([x, x.flip(0)], [scales] * 2, offsets and [offsets] * 2, bits=setting.bits,
                                     **setting.options)
    return [*rows[0], *(y.flip(0) for y in rows[1])]  # the second is as the first where channels are not along axis 0


def _double(setting, x, scales, offsets):
    options = {name: value for name, value in setting.options.items() if name != "signed"}
    return mbq.double_round(x, scales[0], bits=setting.bits, rounding="half_up" if setting.half_up else "half_even",
                            scale_chain=True, **options)


def _affine(setting, x, scales, offsets):
    lo, hi = code_range(setting.bits[0], setting.signed)
    options = dict(zip(("quotient", "zero_point_form", "mask", "grad_product"), setting.form, strict=True))
    return [mbq.fake_quantize_affine(x, scales[0], offsets[0], quant_min=lo, quant_max=hi, axis=setting.axis,
                                     grad_factor=1.0, **options)]


def _codes(setting, x, scales, offsets):
    return [mbq.quantize_codes(x.nan_to_num(0.0, torch.inf, -torch.inf), scales[0], offsets and offsets[0],
                               bits=setting.bits[0], signed=setting.signed, axis=setting.axis)]  # NaN has no code


EVERY_BIT_WIDTH = tuple((b,) for b in range(1, 9))
SEVERAL = ((8, 6, 4, 2), (1, 3, 5, 7))
FORMS = (Setting.form, ("division", "before_rounding", "none", True), ("division", "after_rounding", "position", False),
         ("reciprocal", "before_rounding", "code", True), ("division", "integer", "code", True))
QUANTIZERS = {
    "fake_quantize": Quantizer(EVERY_BIT_WIDTH, _single),
    "fake_quantize_multi": Quantizer(SEVERAL, _multi),
    "fake_quantize_foreach": Quantizer(SEVERAL, _foreach),
    "fake_quantize_affine": Quantizer(EVERY_BIT_WIDTH, _affine, affine=True),
    "double_round": Quantizer(((8, 6, 4, 2), (7, 5, 3)), _double, double=True),
    "quantize_codes": Quantizer(EVERY_BIT_WIDTH, _codes, integers=True),
}


def settings_of(op: str) -> Callable:
    """Return Sweep.settings of an op; an affine quantizer always has a zero point, double rounding no offset."""
    kind = QUANTIZERS[op]
    signs = (True,) if kind.double else (True, False)
    offsets = (True,) if kind.affine else (False,) if kind.double else (False, True)
    last = (False, True) if kind.double else (False,)
    forms = FORMS if kind.affine else FORMS[:1]
    axes = (None, 1, -1) if op == "fake_quantize_foreach" else (None, 0, -1)
    return lambda dtypes: (Setting(op, *choice) for choice in
                           itertools.product(dtypes, kind.bit_lists, signs, axes, offsets, last, forms))


def inputs_of(setting: Setting, count: int, generator, turn: int) -> tuple:
    """Return x, scales, offsets (zero points for affine, or None) and upstream gradients."""
    channels = 1 if setting.axis is None else cv.CHANNELS
    usable = cv.SCALES[:-1] if setting.kind.affine else cv.SCALES  # affine's 1 / scale must be finite
    levels = 1 if setting.kind.double else len(setting.bits)
    pick = [[usable[(turn + 3 * c + 5 * k) % len(usable)] for c in range(channels)] for k in range(levels)]
    scales, offsets = [torch.tensor(row, dtype=cv.wide(setting.dtype)) for row in pick], None
    if setting.kind.affine:
        lo, hi = code_range(setting.bits[0], setting.signed)
        fraction = 0.0 if setting.form[1] == "integer" else 0.25
        offsets = [torch.linspace(lo, hi, channels + 2, dtype=scales[0].dtype)[1:-1].round() + fraction]
    elif setting.offset:
        offsets = [s * (0.75 if turn % 2 else -3.3) for s in scales]
    count //= channels * len(setting.bits)
    x = cv.stacked([_row(setting, c, count, generator, scales, offsets) for c in range(channels)], setting.axis)
    outputs = len(setting.bits) * (2 if setting.op == "fake_quantize_foreach" else 1)
    upstream = [torch.randn(x.shape, generator=generator) for _ in range(outputs)]
    return x, scales, offsets, upstream


def _row(setting, channel, count, generator, scales, offsets):
    parts = []
    for k, bits in enumerate(setting.bits):
        k = 0 if setting.kind.double else k
        step = scales[k][channel].double() * setting.ratio(bits)
        lo, hi = code_range(bits, setting.signed)
        start = 0.0 if offsets is None else offsets[k][channel].double()
        if setting.kind.affine:
            lo, hi, start = lo - start, hi - start, 0.0
        grid = torch.arange(2 * lo - 4, 2 * hi + 5, dtype=torch.float64) / 2  # codes and ties, two beyond each edge
        parts.append(cv.hard_values(setting.dtype, grid * step + start, count // len(setting.bits),
                                    (lo - 2) * step + start, (hi + 2) * step + start, generator, count > 2**14))
    return torch.cat(parts)


def call(setting: Setting, inputs: tuple) -> cv.Results:
    """Return values; then the gradient of x, bounded where it is a sum over bit-widths, and those of parameters."""
    x, scales, offsets, upstream = inputs
    with torch.no_grad():
        values = list(setting.kind.call(setting, x, scales, offsets))
    if setting.kind.integers:
        return cv.Results(values, [])
    x = x.nan_to_num(0.0, torch.inf, -torch.inf).requires_grad_()  # one NaN, and a sum would be NaN
    leaves = [p.detach().requires_grad_() for p in (*scales, *(offsets or []))]
    outputs = setting.kind.call(setting, x, leaves[:len(scales)], leaves[len(scales):] or None)
    grads = torch.autograd.grad(outputs, [x, *leaves], [g.to(y.dtype) for g, y in zip(upstream, outputs, strict=True)])
    alone = len(outputs) == 1
    return cv.Results([*values, grads[0]] if alone else values, list(grads[1:] if alone else grads))


def sizes(setting: Setting, inputs: tuple, results: cv.Results) -> list:
    """Return the sums of the magnitudes of what is added; a tenth of them where partial sums are float64."""
    if setting.kind.integers:
        return []
    x, scales, offsets, upstream = inputs
    grads = [g.double().abs() for g in upstream]
    x = x.nan_to_num(0.0, torch.inf, -torch.inf).double()
    others = [d for d in range(x.dim()) if setting.axis is None or d != setting.axis % x.dim()]
    spread = [1 if d in others else -1 for d in range(x.dim())]
    of_scales = [torch.zeros(len(s), dtype=torch.float64) for s in scales]
    of_offsets = [torch.zeros(len(s), dtype=torch.float64) for s in scales]
    for i, grad in enumerate(grads):
        bits = setting.bits[i % len(setting.bits)]
        k, ratio, (lo, hi) = i % len(scales), setting.ratio(bits), code_range(bits, setting.signed)
        scale, offset = scales[k].double(), offsets[k].double() if offsets else torch.zeros(len(scales[k]))
        if setting.kind.affine:
            term = torch.full_like(x, 2.0**bits)
            if setting.form[2] == "none":
                term += (x / scale.view(spread)).abs()
        else:
            v = (x - offset.view(spread)) / (scale * ratio).view(spread)
            term = torch.where((v >= lo) & (v <= hi), (v.round() - v).abs(), float(max(-lo, hi))).nan_to_num(1.0) + 1e-3
        of_scales[k] += (grad * term).sum(others) * ratio
        of_offsets[k] += grad.sum(others) * (scale if setting.kind.affine else 1.0)
    return [*[sum(grads)] * (len(grads) > 1), *(0.1 * size for size in (*of_scales, *(of_offsets if offsets else ())))]


def numpy_codes(setting: Setting, inputs: tuple) -> list[torch.Tensor]:
    """The contract in NumPy: IEEE operations of the arithmetic's dtype, one at a time."""
    x, scales, offsets, upstream = inputs
    kind = np.float64 if setting.dtype == torch.float64 else np.float32
    x = (x.nan_to_num(0.0, torch.inf, -torch.inf) if setting.kind.integers else x).to(scales[0].dtype).numpy()
    shape = [1] * x.ndim
    if setting.axis is not None:
        shape[setting.axis] = -1
    results = []
    with np.errstate(all="ignore"):
        for i in range(len(upstream)):
            bits, k = setting.bits[i % len(setting.bits)], i % len(scales)
            scale = scales[k].numpy().reshape(shape)
            offset = kind(0) if offsets is None else offsets[k].numpy().reshape(shape)
            results.append(torch.from_numpy(_numpy_level(setting, kind, bits, x, scale, offset)))
    return [y.to(setting.dtype) for y in results] if setting.kind.affine else results


def _numpy_level(setting, kind, bits, x, scale, offset):
    lo, hi = (kind(bound) for bound in code_range(bits, setting.signed))
    if setting.kind.affine:
        quotient = x / scale if setting.form[0] == "division" else x * (kind(1) / scale)
        if setting.form[1] == "before_rounding":
            return (np.clip(np.rint(quotient + offset), lo, hi) - offset) * scale
        return (np.clip(np.rint(quotient) + offset, lo, hi) - offset) * scale
    v = (x - offset) / scale
    if setting.kind.double:
        ratio = kind(setting.ratio(bits))
        first = np.rint(np.clip(v, *(kind(bound) for bound in code_range(HIGH_BITS, True))))
        second = np.floor(first / ratio + kind(0.5)) if setting.half_up else np.rint(first / ratio)
        return np.clip(second, lo, hi) * ratio * scale
    code = np.where(np.isnan(v), v, np.where(v < 0, lo, hi)) if lo == -hi else np.rint(np.clip(v, lo, hi))
    return code.astype(np.int8 if setting.signed else np.uint8) if setting.kind.integers else code * scale + offset


SWEEPS = {op: cv.Sweep(settings_of(op), inputs_of, call, sizes, numpy_codes) for op in QUANTIZERS}
