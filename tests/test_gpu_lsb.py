"""What the compilers made of the GPU code on least significant bits, read without a GPU: wide accesses, no spills."""

import re

import pytest
from test_gpu_code import check_wide_and_exact, compiled_kernels, cuda_code, functions  # noqa: F401

KERNELS = r"(\S*(?:round_clamp|lsb_gradient)_kernel[^\s(]*)"
NOTHING_OUT = "LsbOutE0"  # mangled: lsb_penalty writes nothing for an element


@pytest.fixture(scope="module")
def triton_kernels():
    return compiled_kernels("aot_lsb.py")


def test_triton_moves_all_in_16_bytes_and_spills_nothing(triton_kernels):
    check_wide_and_exact(triton_kernels, 72)


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
