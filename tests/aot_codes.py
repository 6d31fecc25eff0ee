"""Compiles the Triton kernels of the integer ops ahead of time, as aot_triton.py does: for test_gpu_codes.py."""

import json

from aot_triton import SIZES, compile_kernel, facts

from mbq_kernels.triton import elementwise, quant_math
from mbq_kernels.triton.bytes import WORDS
from mbq_kernels.triton.dequantize_codes import dequantize_codes_kernel
from mbq_kernels.triton.pack_codes import pack_codes_kernel, unpack_codes_kernel
from mbq_kernels.triton.switch_bits import CODES, switch_bits_kernel
from mbq_kernels.triton.to_planes import from_planes_kernel, to_planes_kernel

FROM, SWITCH = dict.fromkeys(("from_lo", "from_hi"), "i32"), dict.fromkeys(("shift", "bias", "odd", "lo", "hi"), "i32")
ROW = {"BLOCK_ROWS": 1, "BLOCK_COLS": 2 * elementwise.TILE, "BY_ROW": True}
COLUMN = {"BLOCK_ROWS": 8, "BLOCK_COLS": elementwise.TILE // 4, "BY_ROW": False}
THREADS = 128


def variants():
    """(name, bytes a thread reads, bytes it writes, kernel, types, constants)"""
    codes, words = CODES // THREADS, WORDS // THREADS
    yield "switch_bits", codes, codes, switch_bits_kernel, {
        "codes_ptr": "*i8", "out_ptr": "*i8", "count": "i32", **FROM, **SWITCH}, {"CODES": CODES}
    for tile in (ROW, COLUMN):
        for out, size in (("*fp32", 4), ("*bf16", 2)):
            yield f"dequantize_codes {out} {tile}", codes, size * codes, dequantize_codes_kernel, {
                "codes_ptr": "*i8", "out_ptr": out, "scale_ptr": "*fp32", "step": "fp32", **FROM, **SWITCH,
                **SIZES}, tile
            yield f"quantize_codes {out} {tile}", size * codes, codes, elementwise.forward_kernel, {
                "x_ptr": out, "out_ptrs": ("*i8",), "scale_ptr": "*fp32", "levels": (("fp32", "fp32"),),
                **SIZES}, {
                    "VALUE": quant_math.quantize_codes_value, "shift_ptr": None, "unit_ptr": None,
                    "floor_ptr": None, "ONE_SCALE": False, **tile}
    for bits, packed in ((1, "*u8"), (2, "*i16"), (4, "*i32")):
        for signed in (True, False):
            constants = {"BITS": bits, "SIGNED": signed, "WORDS": WORDS}
            yield f"pack_codes {bits} {signed}", 8 * words, bits * words, pack_codes_kernel, {
                "codes_ptr": "*i64", "packed_ptr": packed, "count": "i32", "lo": "i32", "hi": "i32"}, constants
            yield f"unpack_codes {bits} {signed}", bits * words, 8 * words, unpack_codes_kernel, {
                "packed_ptr": packed, "codes_ptr": "*i64", "count": "i32"}, constants
    planes = {"planes_ptr": "*u8", "codes_ptr": "*i64", "plane_bytes": "i32", "count": "i32"}
    for bits in (2, 5, 8):
        yield f"to_planes {bits}", 8 * words, bits * words, to_planes_kernel, {
            **planes, "lo": "i32", "hi": "i32"}, {"BITS": bits, "WORDS": WORDS}
        for count, half_even in ((min(bits + 1, 8), False), (8, True)):
            yield f"from_planes {bits} {half_even}", count * words, 8 * words, from_planes_kernel, planes, {
                "BITS": bits, "PLANES": count, "HALF_EVEN": half_even, "WORDS": WORDS}


if __name__ == "__main__":
    print(json.dumps([
        {"name": [capability, name], "reads": reads, "writes": writes,
         **facts(compile_kernel(kernel, types, constants, capability))}
        for capability in (80, 90, 100) for name, reads, writes, kernel, types, constants in variants()]))
