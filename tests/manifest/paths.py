"""Give the calls on CUDA whose machine code is counted, by op: of every kernel that a large, aligned tensor takes."""

import torch

from .entry import Path

SIDE, CLASSES = 4096, 1000
F32, BF16, CODES, BYTES = torch.float32, torch.bfloat16, torch.int8, torch.uint8
FOUR = [8, 6, 4, 2]


def empty(*shape, dtype=F32):
    return torch.empty(shape, dtype=dtype, device="meta")  # no host code looks at the elements


FULL = {dtype: empty(SIDE, SIDE, dtype=dtype) for dtype in (F32, BF16, CODES, BYTES)}
ROWS, ONE = empty(SIDE), empty(1)


def name_of(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def forward_and_backward(op, dtype, arguments, gradients, what="", levels=1, **wanted):
    """Give the two paths of an op that reads x and writes `levels` results, and back reads x and their gradients."""
    size, name = dtype.itemsize, " ".join([name_of(dtype), *([what] if what else [])])
    common = {"what": name, "levels": levels, **wanted}
    forward = common | ({"in_flight": 32 * 1024} if levels > 1 else {})  # of its bytes a fifth is read
    return (Path(operator=f"{op}_forward", arguments=arguments, reads=size, writes=levels * size, **forward),
            Path(operator=f"{op}_backward", arguments=arguments | gradients, reads=(1 + levels) * size, writes=size,
                 longest=levels > 1, **common))


def single(dtype, axis):
    x, scale = FULL[dtype], ONE if axis is None else ROWS
    return forward_and_backward("fake_quantize", dtype, {"x": x, "scale": scale, "bits": 4, "axis": axis},
                                {"grad": x}, "" if axis is None else "per channel", share=0.6)


def multi(dtype):
    x = FULL[dtype]
    return forward_and_backward("fake_quantize_multi", dtype, {"x": x, "scales": empty(4), "bits": FOUR},
                                {"grads": [x] * 4}, "x4", levels=4, occupancy=0.5, share=0.6)


def foreach(bits, **wanted):
    xs, levels = [FULL[F32][:1024]] * 3, len(bits)
    return forward_and_backward(
        "fake_quantize_foreach", F32, {"xs": xs, "scales": [ONE] * levels * 3, "bits": bits, "axes": [-1] * 3},
        {"grads": [xs[0]] * levels * 3}, f"x{levels}", levels=levels, numel=3 * xs[0].numel(), share=0.6,
        **wanted)


def double(dtype):
    x = FULL[dtype]
    return forward_and_backward("double_round", dtype, {"x": x, "scale": ROWS, "axis": 0, "bits": FOUR, "high_bits": 8},
                                {"grads": [x] * 4}, "x4", levels=4, occupancy=0.5, share=0.72)


def affine(dtype):
    x = FULL[dtype]
    return forward_and_backward(
        "fake_quantize_affine", dtype,
        {"x": x, "scale": ONE, "zero_point": ONE, "quant_min": -8, "quant_max": 7, "grad_factor": 1.0, "form": 0},
        {"grad": x}, occupancy=0.5, share=0.76)


LSB = {"limit": ONE[0], "bits": 8, "k": 1}
WANTED = {F32: {"share": 0.6}, BF16: {"share": 0.6, "occupancy": 0.5, "in_flight": 32 * 1024}}  # more registers a tile


def lsb(op, dtype, writes, **wanted):
    return Path(operator=f"{op}_forward", what=name_of(dtype), arguments={"x": FULL[dtype], **LSB},
                reads=dtype.itemsize, writes=writes, **WANTED[dtype], **wanted)


def lsb_gradient(op, dtype, reads, arguments):
    x = FULL[dtype]
    return Path(operator=f"{op}_backward", what=name_of(dtype), reads=reads * dtype.itemsize, writes=dtype.itemsize,
                arguments={"x": x, **LSB, **arguments}, **WANTED[dtype])


def codes(operator, what, reads, writes, arguments, **wanted):
    return Path(operator=f"{operator}_forward", what=what, arguments=arguments, reads=reads, writes=writes, **wanted)


def quantize(dtype):
    return codes("quantize_codes", name_of(dtype), dtype.itemsize, 1, {"x": FULL[dtype], "scale": ONE, "bits": 8},
                 narrow=("writes",), share=0.6)


def dequantize(dtype, in_flight):
    arguments = {"codes": FULL[CODES], "scale": ROWS, "axis": 0, "from_bits": 8, "to_bits": 4, "dtype": dtype}
    return codes("dequantize_codes", name_of(dtype), 1, dtype.itemsize, arguments, narrow=("reads",),
                 in_flight=in_flight)


PLANES = empty(8, SIDE, SIDE // 8, dtype=BYTES)


def linear(layout, reads, store, **wanted):
    """Two rows of the weight share a read of x."""
    arguments = {"x": FULL[BF16][:1], "store": store, "scale": ROWS, "bits": 4, "high_bits": 8, "half_up": True}
    return codes("switched_linear", f"bfloat16 {layout}", reads, 0, arguments, again=1, share=0.35, occupancy=0.25,
                 in_flight=32 * 1024, **wanted)


def rows_of_logits(op, dtype, direction="forward", writes=0, arguments=None, **wanted):
    logits, targets = empty(SIDE, CLASSES, dtype=dtype), empty(SIDE, dtype=torch.int64)
    every = {"logits": logits, "targets": targets, "ignore_index": -100, **(arguments or {})}
    return Path(operator=f"{op}_{direction}", what=name_of(dtype), reads=dtype.itemsize, writes=writes, longest=True,
                numel=logits.numel(), arguments=every, **wanted)


WEIGHTS = {"xs": [FULL[F32][:1024]] * 3, "limits": [ONE[0]] * 3, "bits": [8] * 3, "k": [1] * 3, "axes": [-1] * 3}
PATHS = {
    "fake_quantize": [*single(F32, None), *single(BF16, None), *single(F32, 0)],
    "fake_quantize_multi": [*multi(F32), *multi(BF16)],
    "fake_quantize_foreach": [*foreach([4]), *foreach(FOUR, occupancy=0.5)],
    "double_round": [*double(F32), *double(BF16)],
    "fake_quantize_affine": [*affine(F32), *affine(BF16)],
    "round_clamp": [lsb("round_clamp", dtype, dtype.itemsize) for dtype in (F32, BF16)],
    "extract_lsb": [lsb("extract_lsb", dtype, 1, narrow=("writes",)) for dtype in (F32, BF16)],
    "lsb_penalty": [path for dtype in (F32, BF16) for path in (
        lsb("lsb_penalty", dtype, 0), lsb_gradient("lsb_penalty", dtype, 1, {"grad": ONE[0]}))],
    "round_clamp_lsb": [path for dtype in (F32, BF16) for path in (
        lsb("round_clamp_lsb", dtype, dtype.itemsize),
        lsb_gradient("round_clamp_lsb", dtype, 2, {"grad": FULL[dtype], "grad_penalty": ONE[0]}))],
    "round_clamp_lsb_foreach": [*forward_and_backward("round_clamp_lsb_foreach", F32, WEIGHTS, {
        "grads": WEIGHTS["xs"], "grad_penalties": empty(3)}, numel=3 * 1024 * SIDE, share=0.6, occupancy=0.5)],
    "quantize_codes": [quantize(F32), quantize(BF16)],
    "switch_bits": [codes("switch_bits", "int8", 1, 1, {"codes": FULL[CODES], "from_bits": 8, "to_bits": 4},
                          in_flight=24 * 1024)],
    "dequantize_codes": [dequantize(F32, 24 * 1024), dequantize(BF16, 12 * 1024)],
    "pack_codes": [
        codes("pack_codes", "4 bits", 1, 0.5, {"codes": FULL[CODES], "bits": 4}),
        codes("unpack_codes", "4 bits", 0.5, 1, {"packed": empty(SIDE, SIDE // 2, dtype=BYTES), "bits": 4,
                                                 "shape": [SIDE, SIDE]}, narrow=("reads",))],
    "to_planes": [
        codes("to_planes", "8 bits", 1, 1, {"codes": FULL[CODES], "bits": 8}, occupancy=0.5),
        codes("from_planes", "8 to 4 bits", 5 / 8, 1, {"planes": PLANES, "high_bits": 8, "bits": 4,
                                                       "shape": [SIDE, SIDE]}, narrow=("reads",), in_flight=15 * 1024)],
    "switched_linear": [linear("codes", 1, FULL[CODES]), linear("4 planes", 5 / 8, PLANES, narrow=("reads",))],
    "el2n": [rows_of_logits("el2n", F32, share=0.9),
             rows_of_logits("el2n", BF16, share=0.9, occupancy=0.5, in_flight=32 * 1024)],
    "cross_entropy_el2n": [
        rows_of_logits("cross_entropy_el2n", F32, in_flight=40 * 1024, arguments={"label_smoothing": 0.0}),
        rows_of_logits("cross_entropy_el2n", F32, in_flight=40 * 1024, direction="backward", share=0.9, writes=4,
                       arguments={"label_smoothing": 0.0, "grad": ROWS, "rows": empty(SIDE, 2)})],
}
