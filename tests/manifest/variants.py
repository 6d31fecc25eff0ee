"""Describe how the Triton kernels of a family are compiled ahead of time. Triton is imported when asked, not before."""

import itertools

from .entry import MULTIPLES_OF_16, Variant

THREADS = 128
SIZES = {"rows": "i32", "cols": "i32", "col_tiles": "i32", "channels": "i32", "inner": "i32"}
BYTES = {"*fp32": 4, "*bf16": 2, "*fp16": 2}
MIXED = (("*fp32", "*fp32"), ("*bf16", "*bf16"), ("*fp16", "*fp16"), ("*fp32", "*bf16"))  # x; x_hat and its gradient
PAIR = ("fp32", "fp32")  # lo, hi
NARROW = (".b16", ".b8")


def tiles(elements):
    """Give the two shapes of a tile: along a row, and over eight short ones."""
    return ({"BLOCK_ROWS": 1, "BLOCK_COLS": elements, "BY_ROW": True},
            {"BLOCK_ROWS": 8, "BLOCK_COLS": elements // 8, "BY_ROW": False})


def _quantizer(name, x, y, levels, shift, units, shape, level, one_scale):
    """Give the forward and the backward of `levels` quantizers; x_bytes, y_bytes: of a thread's eight elements."""
    from mbq_kernels.triton import _elementwise as elementwise
    from mbq_kernels.triton import _tiling as tiling
    from mbq_kernels.triton import affine_math, quant_math

    arithmetic = affine_math if "affine" in name else quant_math
    x_bytes, y_bytes = 8 * BYTES[x], levels * 8 * BYTES[y]
    optional = {"shift_ptr": shift, "shift_sums_ptr": shift, "unit_ptr": units, "floor_ptr": units,
                "grad_scale_ptr": False}
    present = {argument: "*fp32" for argument, there in optional.items() if there}
    constants = {**dict.fromkeys(optional.keys() - present), "ONE_SCALE": one_scale, **shape}
    inputs = {"x_ptr": x, "scale_ptr": "*fp32", "levels": (level,) * levels, **SIZES, **present}
    what = f"{name} {x} {y} levels={levels} shift={shift} units={units} by_row={shape['BY_ROW']}"
    common = {"options": tiling.OPTIONS, "no_loads": NARROW}
    yield Variant(name=f"forward {what}", kernel=elementwise.forward_kernel, reads=x_bytes, writes=y_bytes, **common,
                  types={**inputs, "out_ptrs": (y,) * levels},
                  constants={"VALUE": getattr(arithmetic, f"{name}_value"), **constants})
    yield Variant(name=f"backward {what}", kernel=elementwise.backward_kernel, reads=x_bytes + y_bytes, writes=x_bytes,
                  types={**inputs, "grad_ptrs": (y,) * levels, "grad_x_ptr": x, "scale_sums_ptr": "*fp32",
                         "factors": ("fp32",) * levels}, **common,
                  constants={"TERMS": getattr(arithmetic, f"{name}_terms"), **constants})


def quantizer_variants(name, *, levels, level=PAIR, shifts, in_units=(), storage=MIXED, one_scale=False):
    """Compile _elementwise.py's kernels with <name>_value and <name>_terms of quant_math.

    levels: bit-widths in one launch; level: types of one's numbers; shifts: with a shift, without, or both; in_units:
    shifts with which units and floors are compiled too, of one storage type; storage: types of x and of x_hat.
    """
    def variants():
        from mbq_kernels.triton import _tiling as tiling

        for (x, y), count, shape in itertools.product(storage, levels, tiles(tiling.TILE)):
            for shift, units in itertools.product(shifts, (False, True)):
                if not units or (shift in in_units and count > 1 and x == y != "*fp16"):
                    yield from _quantizer(name, x, y, count, shift, units, shape, level, one_scale)
    return variants


def dynamic_variants():
    """Compile fake_quantize_dynamic's kernels for long rows, and for short ones that share a program."""
    from mbq_kernels.triton import _tiling as tiling
    from mbq_kernels.triton import fake_quantize_dynamic as dynamic

    numbers = {**dict.fromkeys(("scale_ptr", "zero_point_ptr"), "*fp32"), **dict.fromkeys(("rows", "size"), "i32"),
               **dict.fromkeys(("quant_min", "quant_max"), "fp32")}
    for x, rows, flag in itertools.product(("*fp32", "*bf16"), (1, 16), (False, True)):
        moved, shape = BYTES[x] * dynamic.TILE // THREADS, {"ROWS": rows, "BLOCK": dynamic.TILE // rows}
        common = {"options": tiling.OPTIONS, "at_least": True, "divisible": (*MULTIPLES_OF_16, "size"),
                  "writes": moved}
        yield Variant(name=f"forward {x} {rows} {flag}", kernel=dynamic.dynamic_forward_kernel, reads=moved, **common,
                      types={**numbers, "x_ptr": x, "out_ptr": x, "eps": "fp32"},
                      constants={"SYMMETRIC": flag, "STEPS": 2 if rows == 1 else 1, **shape})
        yield Variant(name=f"backward {x} {rows} {flag}", kernel=dynamic.dynamic_backward_kernel, reads=2 * moved,
                      types={**numbers, "grad_ptr": x, "x_ptr": x, "grad_x_ptr": x},
                      constants={"PRODUCT": flag, **shape}, **common)


def channel_sum_variants():
    """Compile what adds the partial sums of channels: few of them, many along a row, many of channels side by side."""
    from mbq_kernels.triton._finish import block_of, channel_sums_kernel

    sizes = dict.fromkeys(("rows", "channels", "parts", "after", "levels"), "i32")
    scales = dict.fromkeys(("grad_scale_ptr", "scale_sums_ptr", "unit_ptr"), "*fp32")
    shifts = dict.fromkeys(("grad_shift_ptr", "shift_sums_ptr"), "*fp32")
    for parts, by_row, together in ((4, True, 1), (65536, True, 1), (65536, False, 1), (65536, True, 4)):
        given, absent = (shifts, {}) if together == 1 else ({}, dict.fromkeys(shifts))
        yield Variant(name=f"channel sums {parts} {by_row} {together}", kernel=channel_sums_kernel,
                      types={**scales, **given, **sizes},
                      **_apart(channel_sums_kernel, {"TOGETHER": together, **absent, **block_of(parts, by_row)}))


def count_variants():
    """Compile what adds the counts of tiles, few and many."""
    from mbq_kernels.triton._finish import counts_kernel, steps_of

    types = {"penalty_ptr": "*fp32", "rate_ptr": "*fp32", "counts_ptr": "*i32", "tiles": "i32", "numel": "i64"}
    for tiles_ in (100, 100_000):
        yield Variant(name=f"counts {tiles_}", kernel=counts_kernel, types=types,
                      **_apart(counts_kernel, steps_of(tiles_)))


def _apart(kernel, arguments):
    """Give the constants and the options among the arguments of a launch."""
    constants = {name: value for name, value in arguments.items() if name in kernel.arg_names}
    return {"constants": constants,
            "options": {name: value for name, value in arguments.items() if name not in constants}}


NUMBERS = {"form": ("fp32",) * 4, **dict.fromkeys(("steps", "coarse", "ratio"), "fp32")}
LIMITS = ({"limit_ptr": "*fp32"}, {})


def lsb_forward_variants(*outputs):
    """Compile round_clamp_kernel so that it writes `outputs`."""
    def variants():
        from mbq_kernels.triton import _lsb
        from mbq_kernels.triton import _tiling as tiling

        for (x, size), limit in itertools.product(BYTES.items(), LIMITS):
            kinds = {"value_ptr": x, "residual_ptr": "*i8", "counts_ptr": "*i32"}
            written = {"value_ptr": size, "residual_ptr": 1, "counts_ptr": 0}  # a count is a number per program
            for tile in tiles(tiling.TILE * (2 if outputs == ("residual_ptr",) else 1)):
                each = tile["BLOCK_ROWS"] * tile["BLOCK_COLS"] // THREADS
                yield Variant(
                    name=f"forward {outputs} {x} {limit} {tile}", kernel=_lsb.round_clamp_kernel, reads=size * each,
                    writes=each * sum(written[name] for name in outputs), options=tiling.OPTIONS,
                    types={"x_ptr": x, **{name: kinds[name] for name in outputs}, **limit, **NUMBERS, **SIZES},
                    constants={**tile, **dict.fromkeys({*kinds, "limit_ptr"} - {*outputs, *limit})})
    return variants


def lsb_gradient_variants(with_task):
    """Compile lsb_gradient_kernel with the gradient of a value, or with that of the penalty alone."""
    def variants():
        from mbq_kernels.triton import _lsb
        from mbq_kernels.triton import _tiling as tiling

        for (x, size), limit, tile in itertools.product(BYTES.items(), LIMITS, tiles(tiling.TILE)):
            each, grad = tiling.TILE // THREADS, {"grad_ptr": x} if with_task else {}
            yield Variant(
                name=f"backward {x} {limit} {tile}", kernel=_lsb.lsb_gradient_kernel,
                reads=(1 + len(grad)) * size * each, writes=size * each, options=tiling.OPTIONS,
                types={"x_ptr": x, "grad_x_ptr": x, "grad_penalty_ptr": "*fp32", **grad, **limit, **NUMBERS,
                       "factor": "fp32", **SIZES},
                constants={**tile, **dict.fromkeys({"grad_ptr", "limit_ptr"} - {*grad, *limit})})
    return variants


LEVELS = (("fp32", "fp32"),) * 4


def _moments():
    """Give the storage of x, the tile, the types and constants of scales and shifts; 16-bit x has units and floors."""
    from mbq_kernels.triton import _tiling as tiling

    for x, tile in itertools.product(("*fp32", "*bf16"), tiles(tiling.TILE)):
        given = dict.fromkeys(("scale_ptr", "shift_ptr", "new_scale_ptr", "new_shift_ptr", "grad_scale_ptr"), "*fp32")
        optional = dict.fromkeys(("unit_ptr", "floor_ptr"), "*fp32" if x == "*bf16" else None)
        types, constants = ({**given, **optional}, tile) if x == "*bf16" else (given, {**tile, **optional})
        yield x, f"{x} {tile}", {"levels": LEVELS, **types, **SIZES}, constants, {
            "options": tiling.OPTIONS, "at_least": True}


def corrected_variants():
    from mbq_kernels.triton import _elementwise as elementwise
    from mbq_kernels.triton import quant_math
    from mbq_kernels.triton._sums import sums_kernel
    from mbq_kernels.triton.fake_quantize_corrected import corrected_forward_kernel

    for x, what, types, constants, common in _moments():
        moved = 8 * BYTES[x]
        yield Variant(name=f"sums {what}", kernel=sums_kernel, reads=moved, contracts=True, **common,
                      types={"x_ptr": x, "sums_ptr": "*fp64", "pivot_ptr": "*fp32", **types},
                      constants={"LEVELS": 4, "COUNT": 5, **constants})
        yield Variant(name=f"forward {what}", kernel=corrected_forward_kernel, reads=moved, writes=4 * moved,
                      types={"x_ptr": x, "out_ptrs": (x,) * 4, **types}, constants=constants, **common)
        yield Variant(name=f"backward {what}", kernel=elementwise.backward_kernel, reads=5 * moved, writes=moved,
                      types={"grad_ptrs": (x,) * 4, "x_ptr": x, "grad_x_ptr": x, "scale_sums_ptr": "*fp32",
                             "shift_sums_ptr": "*fp32", "factors": ("fp32",) * 4, **types}, **common,
                      constants={"TERMS": quant_math.fake_quantize_terms, "ONE_SCALE": False, **constants})


def correction_variants():
    from mbq_kernels.triton import _tiling as tiling
    from mbq_kernels.triton.correct_weight_bias import correct_kernel

    for x, tile in itertools.product(("*fp32", "*bf16"), tiles(tiling.TILE)):
        yield Variant(name=f"forward {x} {tile}", kernel=correct_kernel, reads=8 * BYTES[x], writes=8 * BYTES[x],
                      types={"x_ptr": x, "out_ptr": x, "rows_ptr": "*fp32", **SIZES}, constants=tile,
                      options=tiling.OPTIONS, at_least=True, contracts=True)
