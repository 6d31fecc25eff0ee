"""The ops on integer codes in check_codes.py, at all pairs of bit-widths; every other op as the manifest calls it."""

import itertools
from dataclasses import dataclass

import code_values as cv
import numpy as np
import torch
from op_calls import MANIFEST, outputs_and_gradients

import mbq_kernels as mbq

ROUNDINGS = ("half_even", "half_up")
BY_MANIFEST = ("switched_linear", "el2n", "cross_entropy_el2n", "correct_weight_bias", "fake_quantize_corrected",
               "fake_quantize_dynamic", "sample_grad_norm_linear", "sample_grad_norm_conv2d",
               "sample_grad_norm_embedding", "sample_grad_norm_layer_norm", "sample_grad_norm_batch_norm")
SIZES = (33, 257, 1031)


@dataclass(frozen=True)
class Setting:
    """From codes at `high` bits to `low` bits; pack_codes: packed at `high` bits, rounding says whether signed."""
    op: str
    high: int
    low: int = 0
    rounding: str = ROUNDINGS[0]
    axis: int | None = None
    dtype: torch.dtype = torch.float32


def switch_settings(op: str):
    widths = [(high, low) for high in range(2, 9) for low in range(2, high + 1)]
    return lambda dtypes: (Setting(op, *pair, rounding) for pair in widths for rounding in ROUNDINGS)


def dequantize_settings(dtypes):
    for setting, axis, dtype in itertools.product(switch_settings("dequantize_codes")(dtypes), (None, 0), dtypes):
        yield Setting(setting.op, setting.high, setting.low, setting.rounding, axis, dtype)


def codes_of(setting: Setting, count: int, generator, turn: int) -> tuple:
    """Return all codes of `high` bits and as many drawn ones as there is room for, in rows of an odd length; scales."""
    lo, each = -(2 ** (setting.high - 1)), count // cv.CHANNELS | 1
    drawn = torch.randint(lo, -lo, (cv.CHANNELS, each + 2), generator=generator, dtype=torch.int8)
    every = torch.arange(lo, -lo).to(torch.int8).expand(cv.CHANNELS, -1)
    # without the subnormal one, where Triton's interpreter, not a GPU, rounds wrongly
    usable = cv.SCALES[:-1] if setting.dtype == torch.bfloat16 else cv.SCALES
    scales = torch.tensor([usable[(turn + c) % len(usable)] for c in range(cv.CHANNELS)])
    return torch.cat([every, drawn], 1), (scales if setting.axis == 0 else scales[:1]).to(cv.wide(setting.dtype))


def switch(setting, inputs):
    return cv.Results([mbq.switch_bits(inputs[0], from_bits=setting.high, to_bits=setting.low,
                                       rounding=setting.rounding)], [])


def dequantize(setting, inputs):
    return cv.Results([mbq.dequantize_codes(*inputs, from_bits=setting.high, to_bits=setting.low, axis=setting.axis,
                                            dtype=setting.dtype, rounding=setting.rounding)], [])


def planes(setting, inputs):
    codes, _ = inputs
    split = mbq.to_planes(codes, bits=setting.high)
    return cv.Results([split, mbq.from_planes(split, high_bits=setting.high, bits=setting.low, shape=codes.shape,
                                              rounding=setting.rounding)], [])


def pack_settings(dtypes):
    return (Setting("pack_codes", bits, rounding=sign) for bits in (1, 2, 4) for sign in ("signed", "unsigned"))


def packable(setting, count, generator, turn):
    """Return codes of a bit-width that packs, and bytes to unpack."""
    signed, each = setting.rounding == "signed", count // cv.CHANNELS | 1
    codes = torch.randint(0, 2**setting.high, (cv.CHANNELS, each + 2), generator=generator)
    codes = codes * 2 - 1 if signed and setting.high == 1 else codes - 2 ** (setting.high - 1) * signed
    packed = torch.randint(0, 256, (cv.CHANNELS, each), generator=generator, dtype=torch.uint8)
    return codes.to(torch.int8 if signed else torch.uint8), packed


def pack(setting, inputs):
    codes, packed = inputs
    options = {"bits": setting.high, "signed": setting.rounding == "signed"}
    shape = (len(packed), packed.shape[1] * 8 // setting.high - 1)
    return cv.Results([mbq.pack_codes(codes, **options), mbq.unpack_codes(packed, shape=shape, **options)], [])


def numpy_switch(setting, codes):
    ratio = 2.0 ** (setting.high - setting.low)
    rounded = np.rint(codes / ratio) if setting.rounding == "half_even" else np.floor(codes / ratio + 0.5)
    return np.minimum(rounded, 2 ** (setting.low - 1) - 1)


def numpy_codes(setting, inputs):
    """Return what switch_bits and dequantize_codes must give."""
    codes, scales = inputs
    switched = numpy_switch(setting, codes.numpy())
    if setting.op == "switch_bits":
        return [torch.from_numpy(switched.astype(np.int8))]
    kind = scales.numpy().dtype.type
    lower = switched.astype(kind) * kind(2.0 ** (setting.high - setting.low))
    return [torch.from_numpy(lower * scales.numpy()[:, None]).to(setting.dtype)]


def numpy_planes(setting, inputs):
    codes = inputs[0].numpy()
    split = [np.packbits(codes >> bit & 1, axis=-1, bitorder="little") for bit in reversed(range(setting.high))]
    return [torch.from_numpy(np.stack(split)), torch.from_numpy(numpy_switch(setting, codes).astype(np.int8))]


def numpy_pack(setting, inputs):
    codes, packed = (array.numpy() for array in inputs)
    bits, signed = setting.high, setting.rounding == "signed"
    fields = (codes + 1) // 2 if signed and bits == 1 else codes.view(np.uint8) & (2**bits - 1)
    fields = np.pad(fields.view(np.uint8), ((0, 0), (0, -codes.shape[1] % (8 // bits))))
    together = sum(fields[:, k::8 // bits].astype(np.uint8) << k * bits for k in range(8 // bits)).astype(np.uint8)
    apart = np.stack([packed >> k * bits & (2**bits - 1) for k in range(8 // bits)], -1).reshape(len(packed), -1)
    apart = apart[:, :packed.shape[1] * 8 // bits - 1].astype(np.int8 if signed else np.uint8)
    if signed:
        apart = apart * 2 - 1 if bits == 1 else (apart ^ 2 ** (bits - 1)) - 2 ** (bits - 1)
    return [torch.from_numpy(together), torch.from_numpy(apart)]


@dataclass(frozen=True)
class ManifestSetting:
    op: str
    size: int
    options: tuple[tuple[str, int], ...]


def manifest_settings(op: str):
    widths = [(("bits", bits),) for bits in MANIFEST[op].bits] or [()]
    return lambda dtypes: (ManifestSetting(op, size, options) for size in SIZES for options in widths)


def manifest_inputs(setting, count, generator, turn):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return tuple(x.detach() for x in MANIFEST[setting.op].data.make("cpu", setting.size))


def manifest_call(setting, inputs):
    op = MANIFEST[setting.op]
    if op.differentiable:
        inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    found = [y.detach() for y in outputs_and_gradients(op, inputs, **dict(setting.options))]
    return cv.Results([y for y in found if not y.is_floating_point()], [y for y in found if y.is_floating_point()])


SWEEPS = {
    "switch_bits": cv.Sweep(switch_settings("switch_bits"), codes_of, switch, definition=numpy_codes),
    "dequantize_codes": cv.Sweep(dequantize_settings, codes_of, dequantize, definition=numpy_codes),
    "to_planes": cv.Sweep(switch_settings("to_planes"), codes_of, planes, definition=numpy_planes),
    "pack_codes": cv.Sweep(pack_settings, packable, pack, definition=numpy_pack),
    **{op: cv.Sweep(manifest_settings(op), manifest_inputs, manifest_call) for op in BY_MANIFEST},
}
