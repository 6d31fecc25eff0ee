"""What Triton made of the kernels of every op, read without a GPU: wide accesses, no spills, no contraction."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from manifest import MANIFEST

TESTS = Path(__file__).resolve().parent
CAPABILITIES = (80, 90, 100)
SHARED = 99 * 1024  # the least shared memory of a GPU these run on
every_op = pytest.mark.parametrize("op", [op.name for op in MANIFEST.values() if callable(op.aot)])


@functools.cache
def compiled_kernels():
    """What aot.py prints of all Triton kernels: a process of its own, because here Triton interprets."""
    if not importlib.util.find_spec("triton"):
        pytest.skip("triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, TESTS / "aot.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def kernels(op):
    """(variant, what became of it) of every compiled kernel of an op: each variant for each architecture."""
    rows = [row for row in compiled_kernels() if row["op"] == op]
    variants = {variant.name: variant for variant in MANIFEST[op].variants()}
    assert len(variants) == len(MANIFEST[op].variants()), "two variants of one name"
    assert sorted((row["variant"], row["capability"]) for row in rows) == sorted(
        (variant, capability) for variant in variants for capability in CAPABILITIES)
    return [(variants[row["variant"]], row) for row in rows]


def wide_bytes(accesses):
    """Bytes that a thread moves in accesses of at least 16."""
    found = (re.search(r"\.v(\d)\.b(\d+)$", access) for access in accesses)
    sizes = (int(match[1]) * int(match[2]) // 8 for match in found if match)
    return sum(size for size in sizes if size >= 16)


@every_op
def test_moves_16_bytes_at_once(op, kernels):
    """All of x, the gradients and the results; scales, offsets and sums may be narrow."""
    for variant, row in kernels:
        what = op, variant.name, row["capability"]
        loads = wide_bytes(row["loads"]) + sum(size for size in row["copies"] if size == 16)
        stores = wide_bytes(row["stores"])
        enough = loads >= variant.reads and stores >= variant.writes
        exact = (loads, stores) == (variant.reads, variant.writes)
        assert enough if variant.at_least else exact, (what, loads, stores)
        assert not [load for load in row["loads"] if load.endswith(variant.no_loads)], what
        if variant.all_wide:
            assert set(row["copies"]) <= {16} and not [load for load in row["loads"] if ".v4." not in load], what


@every_op
def test_neither_spills_nor_wants_more_shared_memory_than_there_is(op, kernels):
    for variant, row in kernels:
        what = op, variant.name, row["capability"]
        assert row["local"] == [] and row["stack"] and not any(row["stack"]), what
        assert row["shared"] <= SHARED, what


@every_op
def test_does_not_contract(op, kernels):
    for variant, row in kernels:
        assert variant.contracts or row["fma"] == [], (op, variant.name, row["capability"])


@pytest.mark.parametrize("op", ["sample_grad_norm_linear", "sample_grad_norm_conv2d"])
def test_products_are_on_tensor_cores(op, kernels):
    found = [(variant, row) for variant, row in kernels if variant.tensor_cores]
    assert found
    for variant, row in found:
        kind = variant.tensor_cores
        kind = "f16" if row["capability"] == 100 and kind == "bf16" else kind  # tcgen05 names both 16-bit types so
        what = op, variant.name, row["capability"]
        assert any(kind in product and "mma" in product for product in row["tensor_cores"]), what
