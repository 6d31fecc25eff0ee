"""Compiles the Triton kernels on least significant bits ahead of time, as aot_triton.py does: for test_gpu_lsb.py."""

import json

from aot_triton import SIZES, compile_kernel, facts

from mbq_kernels.triton import elementwise
from mbq_kernels.triton._lsb import lsb_gradient_kernel, round_clamp_kernel

NUMBERS = {"form": ("fp32",) * 4, **dict.fromkeys(("steps", "coarse", "ratio"), "fp32")}
THREADS = 128
WANTED = {  # by op: what it writes
    "round_clamp": ("value_ptr",), "extract_lsb": ("residual_ptr",), "lsb_penalty": ("counts_ptr",),
    "round_clamp_lsb": ("value_ptr", "counts_ptr")}
OUTPUTS = ("value_ptr", "residual_ptr", "counts_ptr")


def tiles(elements):
    yield {"BLOCK_ROWS": 1, "BLOCK_COLS": elements, "BY_ROW": True}
    yield {"BLOCK_ROWS": 8, "BLOCK_COLS": elements // 8, "BY_ROW": False}


def variants():
    """(name, bytes a thread reads, bytes it writes, kernel, types, constants)"""
    for x, size in (("*fp32", 4), ("*bf16", 2), ("*fp16", 2)):
        for limit in ({"limit_ptr": "*fp32"}, {}):
            for op, outputs in WANTED.items():
                for tile in tiles(elementwise.TILE * (2 if op == "extract_lsb" else 1)):
                    each = tile["BLOCK_ROWS"] * tile["BLOCK_COLS"] // THREADS
                    kinds = {"value_ptr": x, "residual_ptr": "*i8", "counts_ptr": "*i32"}
                    written = {"round_clamp": size, "extract_lsb": 1, "lsb_penalty": 0, "round_clamp_lsb": size}[op]
                    yield f"{op} {x} {limit} {tile}", size * each, written * each, round_clamp_kernel, {
                        "x_ptr": x, **{name: kinds[name] for name in outputs}, **limit, **NUMBERS, **SIZES}, {
                            **tile, **dict.fromkeys({*OUTPUTS, "limit_ptr"} - {*outputs, *limit})}
            for grad in ({"grad_ptr": x}, {}):
                for tile in tiles(elementwise.TILE):
                    each = elementwise.TILE // THREADS
                    yield f"backward {x} {limit} {grad} {tile}", (1 + len(grad)) * size * each, size * each, \
                        lsb_gradient_kernel, {"x_ptr": x, "grad_x_ptr": x, "grad_penalty_ptr": "*fp32", **grad,
                                              **limit, **NUMBERS, "factor": "fp32", **SIZES}, {
                            **tile, **dict.fromkeys({"grad_ptr", "limit_ptr"} - {*grad, *limit})}


if __name__ == "__main__":
    print(json.dumps([
        {"name": [capability, name], "reads": reads, "writes": writes,
         **facts(compile_kernel(kernel, types, constants, capability))}
        for capability in (80, 90, 100) for name, reads, writes, kernel, types, constants in variants()]))
