"""What Triton made of the kernels of scores and corrections, read without a GPU: wide accesses, no spills."""

import pytest
from test_gpu_code import compiled_kernels, wide_bytes


@pytest.fixture(scope="module")
def triton_kernels():
    return compiled_kernels("aot_scores.py")


def test_triton_moves_16_bytes_at_once_and_spills_nothing(triton_kernels):
    by_capability = {c: sum(k["name"][0] == c for k in triton_kernels) for c in (80, 90, 100)}
    assert by_capability == {80: 40, 90: 40, 100: 40}
    for kernel in triton_kernels:
        moved = wide_bytes(kernel["loads"]), wide_bytes(kernel["stores"])
        assert moved[0] >= kernel["reads"] and moved[1] >= kernel["writes"], (kernel["name"], moved, kernel["reads"])
        assert kernel["local"] == [] and kernel["stack"] and not any(kernel["stack"]), kernel["name"]


def test_triton_quantizers_do_not_contract(triton_kernels):
    found = [kernel for kernel in triton_kernels if kernel["name"][1].startswith(("corrected", "gradient of corr"))]
    assert len(found) == 3 * 8
    for kernel in found:
        assert kernel["fma"] == [], kernel["name"]
