"""What the compilers made of the GPU code on least significant bits, read without a GPU: wide accesses, no spills."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_gpu_code import cuda_code, functions, needs_triton, wide_bytes  # noqa: F401

TESTS = Path(__file__).resolve().parent
KERNELS = r"(\S*(?:round_clamp|lsb_gradient)_kernel[^\s(]*)"
NOTHING_OUT = "LsbOutE0"  # mangled: lsb_penalty writes nothing for an element


@pytest.fixture(scope="module")
def triton_kernels():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, TESTS / "aot_lsb.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
def test_triton_moves_all_in_16_bytes_and_spills_nothing(triton_kernels):
    by_capability = {c: sum(k["name"][0] == c for k in triton_kernels) for c in (80, 90, 100)}
    assert by_capability == {80: 72, 90: 72, 100: 72}
    for kernel in triton_kernels:
        moved = wide_bytes(kernel["loads"]), wide_bytes(kernel["stores"])
        assert moved == (kernel["reads"], kernel["writes"]), kernel["name"]
        assert kernel["fma"] == [] and kernel["local"] == [], kernel["name"]
        assert kernel["stack"] and not any(kernel["stack"]), kernel["name"]


def test_cuda_kernels_move_16_bytes_at_once(cuda_code):  # noqa: F811
    kernels = functions(cuda_code[1], "Function : " + KERNELS)
    assert len({name for _, name in kernels}) == 3 * (4 + 2) + 3 * 2  # dtypes x (ops + gradients), and foreach's
    for key, text in kernels.items():
        assert "LDG.E.128" in text, key
        assert "STG.E.128" in text or NOTHING_OUT in key[1], key


def test_cuda_kernels_do_not_contract(cuda_code):  # noqa: F811
    entries = functions(cuda_code[2], r"\.entry " + KERNELS)
    assert entries
    for key, text in entries.items():
        assert "div.rn.f32" in text and not re.search(r"\bfma\.", text), key
