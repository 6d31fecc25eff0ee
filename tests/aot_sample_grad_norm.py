"""Compiles the Triton kernels of per-sample gradient norms ahead of time, and prints what became of each as JSON."""

import json
import re

import triton
from aot_triton import facts
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mbq_kernels.triton import sample_grad_norm as op
from mbq_kernels.triton import sample_kernels as kernels

STORAGE = ("*fp32", "*bf16")
SIZES = {"linear": (256, 384, 1536), "conv": (784, 1152, 128)}  # positions, inputs, outputs
WINDOWS = (3, 3, 1, 1, 1, 1, 1, 1)
# of strides which are 1, the others multiples of 16 or of nothing: a contiguous linear layer, images of 28 x 28
STRIDES = {"linear": ((16, 0, 0, 16, 1), (16, 0, 16, 1)), "conv": ((16, 16, 28, 1, 16), (16, 16, 1, 16))}


def compile_kernel(kernel, layer, types, constants, capability):
    names = kernel.arg_names
    types = {"positions": "i32", "groups": "i32", "slots": "i32", "sums_ptr": "*fp64",
             "image": ("i32",) * 3 if layer == "conv" else ("constexpr",) * 3, **types}
    values = {(names.index(name),): value for name, value in constants.items()}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if str(types.get(name))[0] == "*"}
    attributes[(names.index("positions"),)] = [["tt.divisibility", 16]]
    if layer == "linear" and "image" in names:
        values |= {(names.index("image"), j): 1 for j in range(3)}
    for name, strides in zip(("a_strides", "g_strides"), STRIDES[layer], strict=True):
        if name in names:
            types[name] = tuple("constexpr" if stride == 1 else "i32" for stride in strides)
            values |= {(names.index(name), j): 1 for j, stride in enumerate(strides) if stride == 1}
            attributes |= {(names.index(name), j): [["tt.divisibility", 16]] for j, stride in enumerate(strides)
                           if stride % 16 == 0}
    source = ASTSource(fn=kernel, signature={name: types.get(name, "constexpr") for name in names}, constexprs=values,
                       attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=op.OPTIONS)


def variants():
    for layer, dtype in ((layer, dtype) for layer in SIZES for dtype in STORAGE):
        positions, inputs, outputs = SIZES[layer]
        sizes = {"INPUTS": inputs, "OUTPUTS": outputs}
        common = {**sizes, "WINDOWS": WINDOWS if layer == "conv" else None, "PRECISION": "tf32x3"}
        tile = op.tile_blocks(positions, inputs, outputs, dtype == "*fp32")
        steps = {"STEPS": positions // tile["BLOCK_T"]}
        pointers = {"a_ptr": dtype, "g_ptr": dtype}
        for factor in ("*fp32", None):
            missing = {} if factor else {"factor_ptr": None}
            yield (["tiles", layer, dtype, factor], kernels.tiles_kernel, layer,
                   {**pointers, **({"factor_ptr": factor} if factor else {})}, {**common, **steps, **tile, **missing})
        yield (["bias", layer, dtype, None], kernels.bias_kernel, layer, {"g_ptr": dtype},
               {"OUTPUTS": outputs, **steps, **op.bias_blocks(positions, outputs)})
        yield (["gram", layer, dtype, None], kernels.gram_kernel, layer, pointers,
               {**common, "BIAS": True, **op.gram_blocks(positions, inputs, outputs, dtype == "*fp32")})


def row(name, compiled):
    ptx = compiled.asm["ptx"]
    copies = re.findall(r"cp\.async\S* \[[^]]*\], \[[^]]*\], (0x\w+)", ptx)
    tensor_cores = re.findall(r"(?:wgmma\.mma_async|mma|tcgen05\.mma)\.\S+", ptx)
    return {"name": name, "copies": [int(size, 16) for size in copies], "shared": compiled.metadata.shared,
            "tensor_cores": sorted(set(tensor_cores)), **facts(compiled)}


if __name__ == "__main__":
    print(json.dumps([row([capability, *name], compile_kernel(*what, capability))
                      for capability in (80, 90, 100) for name, *what in variants()]))
