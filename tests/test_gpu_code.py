"""What Triton made of its kernels, read without a GPU: wide accesses, no spills, no contraction."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


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
    assert by_capability == {80: 124, 90: 124, 100: 124}


def test_triton_moves_16_bytes_at_once(triton_kernels):
    """All of x, the gradients and the results; scales, offsets and sums may be narrow."""
    size = {"*fp32": 4, "*bf16": 2, "*fp16": 2}
    for kernel in triton_kernels:
        *_, direction, _, _, x, y, levels, _ = kernel["name"]
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
