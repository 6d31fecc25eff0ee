"""What the compilers made of the GPU code of the integer ops, read without a GPU: wide accesses, no spills."""

import re

import pytest
from test_gpu_code import check_wide_and_exact, compiled_kernels, cuda_code, functions  # noqa: F401

KERNELS = r"Function : (\S*(?:switch_bits|dequantize_codes|words)_kernel\S*)"


@pytest.fixture(scope="module")
def triton_kernels():
    return compiled_kernels("aot_codes.py")


def test_triton_moves_all_in_16_bytes_and_spills_nothing(triton_kernels):
    check_wide_and_exact(triton_kernels, 30)


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
