"""What the compilers made of the GPU code of scores and corrections, read without a GPU: wide accesses, no spills."""

import re

import pytest
from test_gpu_code import compiled_kernels, cuda_code, functions, wide_bytes  # noqa: F401


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


def test_cuda_kernels_read_16_bytes_at_once(cuda_code):  # noqa: F811
    kernels = functions(cuda_code[1], r"Function : (\S*logit_(?:rows|gradient)_kernel\S*)")
    assert len({name for _, name in kernels}) == 2 * 2 * 3
    for key, text in kernels.items():
        assert "LDG.E.128" in text and ("STG.E.128" in text) == ("gradient" in key[1]), key
    assert not re.search(r"\b(LDL|STL)\b", "".join(kernels.values()))
