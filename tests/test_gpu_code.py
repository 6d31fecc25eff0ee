"""What the compilers made of the GPU code, read without a GPU: wide accesses, no spills, no contraction."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mbq_kernels import _library

TESTS = Path(__file__).resolve().parent
ELEMENTS = 8  # of a thread in a Triton kernel


def compiled_kernels(program):
    """What a program beside this file prints of the Triton kernels that it compiles."""
    if not importlib.util.find_spec("triton"):
        pytest.skip("triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, TESTS / program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_wide_and_exact(kernels, count):
    """`count` kernels for each architecture, which move all in 16 bytes, contract nothing and spill nothing."""
    assert {c: sum(k["name"][0] == c for k in kernels) for c in (80, 90, 100)} == dict.fromkeys((80, 90, 100), count)
    for kernel in kernels:
        moved = wide_bytes(kernel["loads"]), wide_bytes(kernel["stores"])
        assert moved == (kernel["reads"], kernel["writes"]), kernel["name"]
        assert kernel["fma"] == [] and kernel["local"] == [], kernel["name"]
        assert kernel["stack"] and not any(kernel["stack"]), kernel["name"]


@pytest.fixture(scope="module")
def triton_kernels():
    return compiled_kernels("aot_triton.py")


def test_triton_compiles_for_every_architecture(triton_kernels):
    by_capability = {c: sum(k["name"][0] == c for k in triton_kernels) for c in (80, 90, 100)}
    assert by_capability == {80: 108, 90: 108, 100: 108}


def test_triton_moves_16_bytes_at_once(triton_kernels):
    """All of x, the gradients and the results; scales, offsets and sums may be narrow."""
    size = {"*fp32": 4, "*bf16": 2, "*fp16": 2}
    for kernel in triton_kernels:
        *_, direction, _, x, y, levels, _ = kernel["name"]
        x_bytes, y_bytes = ELEMENTS * size[x], levels * ELEMENTS * size[y]
        expected = (x_bytes, y_bytes) if direction == "forward" else (x_bytes + y_bytes, x_bytes)
        assert (wide_bytes(kernel["loads"]), wide_bytes(kernel["stores"])) == expected, kernel["name"]
        assert not [op for op in kernel["loads"] if op.endswith((".b16", ".b8"))], kernel["name"]


def wide_bytes(accesses):
    """Bytes that a thread moves in accesses of at least 16."""
    sizes = (int(match[1]) * int(match[2]) // 8 for op in accesses if (match := re.search(r"\.v(\d)\.b(\d+)$", op)))
    return sum(size for size in sizes if size >= 16)


def test_triton_neither_spills_nor_contracts(triton_kernels):
    for kernel in triton_kernels:
        assert kernel["fma"] == [] and kernel["local"] == [], kernel["name"]
        assert kernel["stack"] and not any(kernel["stack"]), kernel["name"]


@functools.cache
def cuobjdump(*options):
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    library = Path(_library.__file__).with_name("_C.so")
    return subprocess.run([tool, *options, library], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def cuda_code():
    if not (_library.build() or {}).get("cuda_architectures"):
        pytest.skip("no CUDA kernels were built (no nvcc, or MBQ_CUDA=off)")
    if not importlib.util.find_spec("triton"):
        pytest.skip("cuobjdump comes with triton, which is not installed")
    return cuobjdump("--dump-resource-usage"), cuobjdump("--dump-sass"), cuobjdump("--dump-ptx")


def functions(text, marker):
    """{(architecture, function): its part of a dump}"""
    parts, arch, current = {}, None, []
    for line in text.splitlines():
        if match := re.search(r"arch = sm_(\d+)", line):
            arch, current = match[1], []
        elif match := re.search(marker, line):
            current = parts[arch, match[1]] = []
        else:
            current.append(line)
    return {key: "\n".join(lines) for key, lines in parts.items()}


def test_library_asks_for_torch_itself(cuda_code):
    """Which brings the library of the streams where it has CUDA; a linker drops it, for it defines nothing itself."""
    library = Path(_library.__file__).with_name("_C.so")
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "[libtorch.so]" in dynamic


def test_cuda_kernels_are_built_for_two_architectures(cuda_code):
    wanted = {"80", "90"}
    built = set(re.findall(r"\d+", _library.build()["cuda_architectures"]))
    if not wanted <= built:
        pytest.skip(f"MBQ_CUDA_ARCHS left out sm_{' sm_'.join(sorted(wanted - built))} when this was built")
    assert wanted <= {arch for arch, _ in functions(cuda_code[1], r"Function : (\S*(?:forward|backward)_kernel\S*)")}


def test_cuda_kernels_use_no_stack_and_no_local_memory(cuda_code):
    usage = re.findall(r"Function (\S+):\s*\n.*?STACK:(\d+).*?LOCAL:(\d+)", cuda_code[0])
    assert len(usage) > 50
    assert [name for name, stack, local in usage if int(stack) or int(local)] == []
    assert not re.search(r"\b(LDL|STL)\b", cuda_code[1])


def test_cuda_kernels_move_16_bytes_at_once(cuda_code):
    """Loads may be shorter where what is read is narrower than what is stored, whose stores are never split."""
    kernels = functions(cuda_code[1], r"Function : (\S*(?:forward|backward)_kernel\S*)")
    assert len(kernels) > 50
    for key, text in kernels.items():
        assert "LDG.E.128" in text or "LDG.E.64" in text, key
        whole = text.count("STG.E.128")  # of batches of four, two and one accesses, or of two and one
        assert whole >= (7 if "forward_kernel" in key[1] else 3), f"{key}: {whole}"


def test_cuda_quantizers_do_not_contract(cuda_code):
    """In PTX, before the assembler writes division out in its own fused steps."""
    entries = functions(cuda_code[2], r"\.entry (\S*(?:forward|backward)_kernel[^\s(]*)")
    assert len(entries) > 50
    for key, text in entries.items():
        assert "div.rn.f32" in text and not re.search(r"\bfma\.", text), key
