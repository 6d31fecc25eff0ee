"""What the compilers made of the GPU code of the integer ops, read without a GPU: wide accesses, no spills."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_gpu_code import cuda_code, functions, needs_triton, wide_bytes  # noqa: F401

TESTS = Path(__file__).resolve().parent
KERNELS = r"Function : (\S*(?:switch_bits|dequantize_codes|words)_kernel\S*)"


@pytest.fixture(scope="module")
def triton_kernels():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, TESTS / "aot_codes.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
def test_triton_moves_all_in_16_bytes_and_spills_nothing(triton_kernels):
    by_capability = {c: sum(k["name"][0] == c for k in triton_kernels) for c in (80, 90, 100)}
    assert by_capability == {80: 30, 90: 30, 100: 30}
    for kernel in triton_kernels:
        moved = wide_bytes(kernel["loads"]), wide_bytes(kernel["stores"])
        assert moved == (kernel["reads"], kernel["writes"]), kernel["name"]
        assert kernel["fma"] == [] and kernel["local"] == [], kernel["name"]
        assert kernel["stack"] and not any(kernel["stack"]), kernel["name"]


def test_cuda_kernels_move_16_bytes_at_once(cuda_code):  # noqa: F811
    """One load of 16 bytes for 16 codes or 16 bytes of a plane, and a store: of eight stores nvcc may split one."""
    kernels = functions(cuda_code[1], KERNELS)
    assert len({name for _, name in kernels}) == 1 + 3 + 12 + 7 + 28
    for key, text in kernels.items():
        loads, stores = (len(re.findall(rf"\b{op}\.E\.128\b", text)) for op in ("LDG", "STG"))
        match = re.search(r"(Pack|Unpack|Split|Join)WordsILi(\d)(?:ELi(\d))?", key[1])
        if match is None:
            assert loads == 5 and stores >= 5, key  # a batch of 4, and the rest one by one
            continue
        kind, narrow = match[1], int(match[3] or match[2])  # accesses to the packed bytes or the planes of 128 codes
        assert loads >= (8 if kind in ("Pack", "Split") else narrow), key
        assert stores >= (narrow if kind in ("Pack", "Split") else 7), key
