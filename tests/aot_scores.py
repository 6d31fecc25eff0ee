"""Compiles the Triton kernels of scores and corrections ahead of time, like aot_triton.py: for test_gpu_scores.py."""

import json

from aot_triton import SIZES, compile_kernel, facts

from mbq_kernels.triton import elementwise, logit_rows, quant_math
from mbq_kernels.triton.affine_norms import ALONG, affine_norms_kernel
from mbq_kernels.triton.correct_weight_bias import correct_kernel
from mbq_kernels.triton.fake_quantize_corrected import corrected_forward_kernel
from mbq_kernels.triton.sample_grad_norm_embedding import BLOCK_D, embedding_norms_kernel
from mbq_kernels.triton.sums import sums_kernel

SIZE = {"*fp32": 4, "*bf16": 2}
TILES = ({"BLOCK_ROWS": 1, "BLOCK_COLS": elementwise.TILE, "BY_ROW": True},
         {"BLOCK_ROWS": 8, "BLOCK_COLS": elementwise.TILE // 8, "BY_ROW": False})
LEVELS = (("fp32", "fp32"),) * 4


def of_logits(x):
    """(name, bytes of x a thread reads at least, bytes it writes, kernel, types, constants, options)"""
    moved = SIZE[x] * logit_rows.TILE // 256
    types = {"x_ptr": x, "targets_ptr": "*i64", "rows_ptr": "*fp32", "count": "i32", "units": "i32",
             "ignore_index": "i32", "smoothing": "fp32"}
    for rows, block in ((1, logit_rows.TILE), (2, 1024), (128, 16)):
        shape = {"UNIT": 8, "ROWS": rows, "BLOCK": block}
        for smooth in (False, True):
            yield f"logits {rows} {smooth}", moved, 0, logit_rows.logit_rows_forward_kernel, {
                **types, "loss_ptr": "*fp32", "el2n_ptr": "*fp32"}, {**shape, "STEPS": 3, "SMOOTH": smooth}
        yield f"gradient of logits {rows}", moved, moved, logit_rows.logit_rows_backward_kernel, {
            **types, "grad_ptr": "*fp32", "grad_x_ptr": x}, shape


def of_corrections(x, tile):
    moved = SIZE[x] * 8
    shift = dict.fromkeys(("scale_ptr", "shift_ptr", "new_scale_ptr", "new_shift_ptr", "grad_scale_ptr"), "*fp32")
    optional = dict.fromkeys(("unit_ptr", "floor_ptr"), "*fp32" if x == "*bf16" else None)
    shift, tile = ({**shift, **optional}, tile) if x == "*bf16" else (shift, {**tile, **optional})
    yield f"sums {tile}", moved, 0, sums_kernel, {
        "x_ptr": x, "sums_ptr": "*fp64", "pivot_ptr": "*fp32", "levels": LEVELS, **shift, **SIZES}, {
            "LEVELS": 4, "COUNT": 5, **tile}
    yield f"corrected {tile}", moved, 4 * moved, corrected_forward_kernel, {
        "x_ptr": x, "out_ptrs": (x,) * 4, "levels": LEVELS, **shift, **SIZES}, tile
    yield f"gradient of corrected {tile}", 5 * moved, moved, elementwise.backward_kernel, {
        "grad_ptrs": (x,) * 4, "x_ptr": x, "grad_x_ptr": x, "scale_sums_ptr": "*fp32", "shift_sums_ptr": "*fp32",
        "levels": LEVELS, "factors": ("fp32",) * 4, **shift, **SIZES}, {
            "TERMS": quant_math.fake_quantize_terms, "ONE_SCALE": False, **tile}
    yield f"correct {tile}", moved, moved, correct_kernel, {
        "x_ptr": x, "out_ptr": x, "rows_ptr": "*fp32", **SIZES}, tile


def of_norms(x):
    for last, (channels, positions) in ALONG.items():
        yield f"norms {last}", 2 * SIZE[x] * channels * positions // 128, 0, affine_norms_kernel, {
            "x_ptr": x, "grad_ptr": x, "parts_ptr": "*fp64", "width": "i32", "positions": "i32"}, {
                "WEIGHT": True, "BIAS": True, "POSITIONS_LAST": last, "STEPS": 5, "BLOCK_C": channels,
                "BLOCK_P": positions}
    yield "norms of embedding", 0, 0, embedding_norms_kernel, {
        "order_ptr": "*i64", "ends_ptr": "*i32", "grad_ptr": x, "parts_ptr": "*fp64", "width": "i32"}, {
            "POSITIONS": 64, "BLOCK_D": BLOCK_D}


def variants():
    for x in SIZE:
        for row in of_logits(x):
            yield *row, logit_rows.OPTIONS
        for row in (*(row for tile in TILES for row in of_corrections(x, tile)), *of_norms(x)):
            yield *row, elementwise.OPTIONS


if __name__ == "__main__":
    print(json.dumps([
        {"name": [capability, name, types.get("x_ptr", types.get("grad_ptr"))], "reads": reads, "writes": writes,
         **facts(compile_kernel(kernel, types, constants, capability, options))}
        for capability in (80, 90, 100) for name, reads, writes, kernel, types, constants, options in variants()]))
