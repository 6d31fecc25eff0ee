"""Compiles the Triton kernels of switched_linear ahead of time, and prints what the compiler made of each as JSON."""

import json
import re

import triton
from aot_triton import facts
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mbq_kernels.triton import switched_linear as op

# (storage of x, planes or 0 for codes, bits, rows of x in a tile)
FORWARD = [("*fp32", 0, 4, 1), ("*bf16", 0, 8, 16), ("*fp32", 0, 3, 32), ("*fp16", 0, 3, 64), ("*bf16", 8, 8, 1),
           ("*fp32", 3, 2, 1), ("*fp32", 8, 8, 16)]
BACKWARD = [("*fp32", 0, 4), ("*bf16", 8, 8)]


def compile_kernel(kernel, types, constants, capability, stages):
    names = kernel.arg_names
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
                  if types.get(name, "").startswith("*") or name in ("row_bytes", "columns")}
    source = ASTSource(fn=kernel, signature={name: types.get(name, "constexpr") for name in names},
                       constexprs={(names.index(name),): value for name, value in constants.items()}, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32),
                          options={**op.OPTIONS, "num_stages": stages})


def forward(x, planes, bits, block_m, capability):
    layout = "planes" if planes else "codes"
    rows, words = op.TILES[layout, block_m > 1]
    types = {"x_ptr": x, "store_ptr": "*u32", "scale_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": x, "count": "i32",
             "outputs": "i32"}
    constants = {"sums_ptr": None, "WORDS": 16 * words, "STEPS": 16, "PLANES": planes, "BYTES": 4,
                 "HIGH_BITS": 8, "BITS": bits, "HALF_UP": True, "ONE_SCALE": False, "BLOCK_N": rows, "BLOCK_W": words,
                 "BLOCK_M": block_m}
    return compile_kernel(op.switched_linear_forward_kernel, types, constants, capability,
                          op.STAGES[layout])


def backward(grad, planes, bits, capability):
    types = {"grad_ptr": grad, "store_ptr": "*u8" if planes else "*i8", "scale_ptr": "*fp32", "grad_x_ptr": grad,
             "count": "i32", "outputs": "i32", "columns": "i32", "row_bytes": "i32"}
    constants = {"STEPS": 64, "PLANES": planes, "HIGH_BITS": 8, "BITS": bits, "HALF_UP": True, "ONE_SCALE": False,
                 **op.GRADIENT_TILE}
    return compile_kernel(op.switched_linear_backward_kernel, types, constants, capability,
                          op.GRADIENT_OPTIONS["num_stages"])


def row(name, compiled):
    copies = re.findall(r"cp\.async\S* \[[^]]*\], \[[^]]*\], (0x\w+)", compiled.asm["ptx"])
    return {"name": name, "copies": [int(size, 16) for size in copies], "shared": compiled.metadata.shared,
            **facts(compiled)}


if __name__ == "__main__":
    rows = []
    for capability in (80, 90, 100):
        rows += [row(["forward", capability, *case], forward(*case, capability)) for case in FORWARD]
        rows += [row(["backward", capability, *case], backward(*case, capability)) for case in BACKWARD]
    print(json.dumps(rows))
