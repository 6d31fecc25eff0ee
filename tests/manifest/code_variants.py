"""Describe how the Triton kernels on integer codes are compiled ahead of time, as in variants.py."""

import itertools

from .entry import Variant
from .variants import SIZES, THREADS

FROM, SWITCH = dict.fromkeys(("from_lo", "from_hi"), "i32"), {"switch": ("i32",) * 4}
STORAGE = {"*fp32": 4, "*bf16": 2}


def _tiles():
    from mbq_kernels.triton._elementwise import TILE

    return ({"BLOCK_ROWS": 1, "BLOCK_COLS": 2 * TILE, "BY_ROW": True},
            {"BLOCK_ROWS": 8, "BLOCK_COLS": TILE // 4, "BY_ROW": False})


def switch_bits():
    from mbq_kernels.triton._elementwise import OPTIONS
    from mbq_kernels.triton.switch_bits import CODES, switch_bits_kernel

    yield Variant(name="int8", kernel=switch_bits_kernel, reads=CODES // THREADS, writes=CODES // THREADS,
                  types={"codes_ptr": "*i8", "out_ptr": "*i8", "count": "i32", **FROM, **SWITCH},
                  constants={"CODES": CODES}, options=OPTIONS)


def dequantize_codes():
    from mbq_kernels.triton._elementwise import OPTIONS, TILE
    from mbq_kernels.triton.dequantize_codes import dequantize_codes_kernel

    codes = 2 * TILE // THREADS
    for tile, (out, size) in itertools.product(_tiles(), STORAGE.items()):
        yield Variant(name=f"{out} {tile}", kernel=dequantize_codes_kernel, reads=codes, writes=size * codes,
                      types={"codes_ptr": "*i8", "out_ptr": out, "scale_ptr": "*fp32", "step": "fp32", **FROM, **SWITCH,
                             **SIZES}, constants=tile, options=OPTIONS)


def quantize_codes():
    from mbq_kernels.triton import quant_math
    from mbq_kernels.triton._elementwise import OPTIONS, TILE, forward_kernel

    codes, absent = 2 * TILE // THREADS, dict.fromkeys(("shift_ptr", "unit_ptr", "floor_ptr"))
    for tile, (x, size) in itertools.product(_tiles(), STORAGE.items()):
        yield Variant(name=f"{x} {tile}", kernel=forward_kernel, reads=size * codes, writes=codes, options=OPTIONS,
                      types={"x_ptr": x, "out_ptrs": ("*i8",), "scale_ptr": "*fp32", "levels": (("fp32", "fp32"),),
                             **SIZES},
                      constants={"VALUE": quant_math.quantize_codes_value, "ONE_SCALE": False, **absent, **tile})


def pack_codes():
    from mbq_kernels.triton._bytes import WORDS
    from mbq_kernels.triton._elementwise import OPTIONS
    from mbq_kernels.triton.pack_codes import pack_codes_kernel, unpack_codes_kernel

    words = WORDS // THREADS
    for (bits, packed), signed in itertools.product(((1, "*u8"), (2, "*i16"), (4, "*i32")), (True, False)):
        types = {"codes_ptr": "*i64", "packed_ptr": packed, "count": "i32"}
        common = {"constants": {"BITS": bits, "SIGNED": signed, "WORDS": WORDS}, "options": OPTIONS}
        yield Variant(name=f"pack {bits} {signed}", kernel=pack_codes_kernel, reads=8 * words, writes=bits * words,
                      types={**types, "lo": "i32", "hi": "i32"}, **common)
        yield Variant(name=f"unpack {bits} {signed}", kernel=unpack_codes_kernel, reads=bits * words,
                      writes=8 * words, types=types, **common)


def to_planes():
    from mbq_kernels.triton._bytes import WORDS
    from mbq_kernels.triton._elementwise import OPTIONS
    from mbq_kernels.triton.to_planes import from_planes_kernel, to_planes_kernel

    words, types = WORDS // THREADS, {"planes_ptr": "*u8", "codes_ptr": "*i64", "plane_bytes": "i32", "count": "i32"}
    for bits in (2, 5, 8):
        yield Variant(name=f"to {bits}", kernel=to_planes_kernel, reads=8 * words, writes=bits * words,
                      types={**types, "lo": "i32", "hi": "i32"}, constants={"BITS": bits, "WORDS": WORDS},
                      options=OPTIONS)
        for count, half_even in ((min(bits + 1, 8), False), (8, True)):
            yield Variant(name=f"from {bits} {half_even}", kernel=from_planes_kernel, reads=count * words,
                          writes=8 * words, types=types, options=OPTIONS,
                          constants={"BITS": bits, "PLANES": count, "HALF_EVEN": half_even, "WORDS": WORDS})


# (storage of x, planes or 0 for codes, bits, rows of x in a tile)
FORWARD = [("*fp32", 0, 4, 1), ("*bf16", 0, 8, 16), ("*fp32", 0, 3, 32), ("*fp16", 0, 3, 64), ("*bf16", 8, 8, 1),
           ("*fp32", 3, 2, 1), ("*fp32", 8, 8, 16)]
ROW_BYTES = {"divisible": ("row_bytes", "columns"), "at_least": True, "contracts": True}


def switched_linear():
    """Give forwards, which read the store 16 bytes at once: straight to registers for one row of x, by cp.async into
    shared memory where tensor cores follow; and backwards."""
    from mbq_kernels.triton import switched_linear as op

    high = {"HIGH_BITS": 8, "HALF_UP": True, "ONE_SCALE": False}
    for x, planes, bits, block in FORWARD:
        layout = "planes" if planes else "codes"
        rows, words = op.TILES[layout, block > 1]
        yield Variant(
            name=f"forward {x} planes={planes} bits={bits} rows={block}", kernel=op.switched_linear_forward_kernel,
            types={"x_ptr": x, "store_ptr": "*u32", "scale_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": x,
                   "count": "i32", "outputs": "i32"},
            constants={"sums_ptr": None, "WORDS": 16 * words, "STEPS": 16, "PLANES": planes, "BYTES": 4, "BITS": bits,
                       "BLOCK_N": rows, "BLOCK_W": words, "BLOCK_M": block, **high},
            options={**op.OPTIONS, "num_stages": op.STAGES[layout]}, no_loads=(".b8",),
            reads=rows * words * 4 * max(planes, 1) // THREADS, **ROW_BYTES)
    for grad, planes, bits in (("*fp32", 0, 4), ("*bf16", 8, 8)):
        yield Variant(
            name=f"backward {grad} planes={planes} bits={bits}", kernel=op.switched_linear_backward_kernel,
            types={"grad_ptr": grad, "store_ptr": "*u8" if planes else "*i8", "scale_ptr": "*fp32", "grad_x_ptr": grad,
                   "count": "i32", "outputs": "i32", "columns": "i32", "row_bytes": "i32"},
            constants={"STEPS": 64, "PLANES": planes, "BITS": bits, **high, **op.GRADIENT_TILE},
            options={**op.OPTIONS, "num_stages": op.GRADIENT_OPTIONS["num_stages"]}, **ROW_BYTES)
    yield Variant(
        name="sums of splits", kernel=op.finish_kernel, **ROW_BYTES,
        types={"sums_ptr": "*fp32", "scale_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": "*bf16", "outputs": "i32",
               "count": "i32"},
        constants={"SPLITS": 4, "DROP": 4, "ONE_SCALE": False, "BLOCK_N": 16, "BLOCK_M": 1}, options=op.OPTIONS)
