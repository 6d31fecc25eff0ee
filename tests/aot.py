"""Compile every Triton kernel of the manifest ahead of time and print, as JSON, what the compiler made of each.

A program of its own for test_gpu_code.py, because Triton decides at import whether it interprets.
"""

import json
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton
from manifest import MANIFEST
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compile_variant(variant, capability):
    names, attributes = variant.kernel.arg_names, {}
    for i, name in enumerate(names):
        members = variant.types.get(name, ())
        leaves = [((i,), members, name)] if isinstance(members, str) else [
            ((i, j), member, (name, j)) for j, member in enumerate(members)]
        attributes |= {path: [["tt.divisibility", 16]] for path, kind, leaf in leaves
                       if kind[0] == "*" or name in variant.divisible or leaf in variant.divisible}
    places = {(name, *rest): value for key, value in variant.constants.items()
              for name, *rest in [key if isinstance(key, tuple) else (key,)] if name in names}
    source = ASTSource(fn=variant.kernel, signature={name: variant.types.get(name, "constexpr") for name in names},
                       constexprs={(names.index(name), *rest): value for (name, *rest), value in places.items()},
                       attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=variant.options)


def facts(compiled):
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", cubin.name], capture_output=True, text=True,
                               check=True)
    copies = re.findall(r"cp\.async\S* \[[^]]*\], \[[^]]*\], (0x\w+)", ptx)
    tensor_cores = re.findall(r"(?:wgmma\.mma_async|mma|tcgen05\.mma)\.\S+", ptx)
    return {"loads": re.findall(r"ld\.global\S*", ptx), "stores": re.findall(r"st\.global\S*", ptx),
            "copies": [int(size, 16) for size in copies], "shared": compiled.metadata.shared,
            "tensor_cores": sorted(set(tensor_cores)), "fma": re.findall(r"fma\.\S+", ptx),
            "local": re.findall(r"(?:ld|st)\.local\S*", ptx),
            "stack": [int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage.stdout)]}


def rows_of(name):
    return [{"op": name, "variant": variant.name, "capability": capability,
             **facts(compile_variant(variant, capability))}
            for variant in MANIFEST[name].variants() for capability in CAPABILITIES]


if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        print(json.dumps([row for rows in pool.map(rows_of, MANIFEST) for row in rows]))
