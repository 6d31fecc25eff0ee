"""Compiles every Triton kernel ahead of time and prints, as JSON, what the compiler made of each: for test_gpu_code.py.

A program of its own, because Triton decides at import whether it interprets.
"""

import itertools
import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mbq_kernels.triton import elementwise, quant_math

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
QUANTIZERS = {"fake_quantize": (quant_math.fake_quantize_value, quant_math.fake_quantize_terms),
              "fake_quantize_affine": (quant_math.fake_quantize_affine_value, quant_math.fake_quantize_affine_terms),
              "double_round": (quant_math.double_round_value, quant_math.double_round_terms)}
WITH_SHIFT = {"fake_quantize": (False, True), "fake_quantize_affine": (True,), "double_round": (False,)}
IN_UNITS = {("fake_quantize", True), ("double_round", False)}  # with a shift or not: with units and floors as well
NUMBERS = {"fake_quantize": 2, "fake_quantize_affine": 2, "double_round": 5}  # that make a level
STORAGE = (("*fp32", "*fp32"), ("*bf16", "*bf16"), ("*fp16", "*fp16"), ("*fp32", "*bf16"))  # x; x_hat and its gradient
SIZES = {"rows": "i32", "cols": "i32", "col_tiles": "i32", "channels": "i32", "inner": "i32"}
MULTIPLES_OF_16 = ("cols", "inner", "count", "plane_bytes", "positions", "width")


def compile_kernel(kernel, types, constants, capability, options=elementwise.OPTIONS):
    """`types` by argument name, pointers aligned to 16 bytes, sizes multiples of 16; the rest constant."""
    names = kernel.arg_names
    attributes = {}
    for i, name in enumerate(names):
        members = types.get(name, ())
        single = isinstance(members, str)
        for path, kind in [((i,), members)] if single else [((i, j), m) for j, m in enumerate(members)]:
            if kind[0] == "*" or name in MULTIPLES_OF_16:
                attributes[path] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature={name: types.get(name, "constexpr") for name in names},
                       constexprs={(names.index(name),): constants[name] for name in constants if name in names},
                       attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def facts(compiled):
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", cubin.name], capture_output=True, text=True,
                               check=True)
    return {"loads": re.findall(r"ld\.global\S*", ptx), "stores": re.findall(r"st\.global\S*", ptx),
            "fma": re.findall(r"fma\.\S+", ptx), "local": re.findall(r"(?:ld|st)\.local\S*", ptx),
            "stack": [int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage.stdout)]}


def variants():
    tile = {"BLOCK_ROWS": 1, "BLOCK_COLS": elementwise.TILE, "BY_ROW": True}
    short = {"BLOCK_ROWS": 8, "BLOCK_COLS": elementwise.TILE // 8, "BY_ROW": False}
    for (op, (value, terms)), (x, y), levels, shape in itertools.product(
            QUANTIZERS.items(), STORAGE, (1, 4), (tile, short)):
        if op == "fake_quantize_affine" and (levels > 1 or x != y):
            continue
        for shift, units in itertools.product(WITH_SHIFT[op], (False, True)):
            if units and ((op, shift) not in IN_UNITS or levels == 1 or x != y or x == "*fp16"):
                continue
            many = lambda kind, levels=levels: (kind,) * levels  # noqa: E731
            inputs = {"x_ptr": x, "scale_ptr": "*fp32", "levels": many(("fp32",) * NUMBERS[op]), **SIZES}
            optional = {"shift_ptr": shift, "shift_sums_ptr": shift, "unit_ptr": units, "floor_ptr": units,
                        "grad_scale_ptr": False}
            present = {name: "*fp32" for name, there in optional.items() if there}
            options = {**dict.fromkeys(optional.keys() - present), "ONE_SCALE": op == "double_round", **shape}
            name = (units, shift, x, y, levels, shape["BY_ROW"])
            yield (op, "forward", *name), elementwise.forward_kernel, {
                **inputs, **present, "out_ptrs": many(y)}, {"VALUE": value, **options}
            yield (op, "backward", *name), elementwise.backward_kernel, {
                **inputs, **present, "grad_ptrs": many(y), "grad_x_ptr": x, "scale_sums_ptr": "*fp32",
                "factors": many("fp32")}, {"TERMS": terms, **options}


if __name__ == "__main__":
    rows = []
    for capability in (80, 90, 100):
        for name, kernel, types, constants in variants():
            rows.append({"name": [capability, *name], **facts(compile_kernel(kernel, types, constants, capability))})
    print(json.dumps(rows))
