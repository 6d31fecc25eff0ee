"""What the compilers made of the GPU code of the integer ops, read without a GPU: wide accesses, no spills."""

import collections
import re

import pytest
from test_gpu_code import check_wide_and_exact, compiled_kernels, cuda_code, functions  # noqa: F401

KERNELS = r"Function : (\S*(?:switch_bits|dequantize_codes|words)_kernel\S*)"


@pytest.fixture(scope="module")
def triton_kernels():
    return compiled_kernels("aot_codes.py")


def test_triton_moves_all_in_16_bytes_and_spills_nothing(triton_kernels):
    check_wide_and_exact(triton_kernels, 30)


def accesses(text, op):
    """{bytes: how many} of loads or stores"""
    found = re.findall(rf"\b{op}\.E(?:\.(128|64|U16|U8))?(?:\.CONSTANT)?\b", text)
    widths = {"128": 16, "64": 8, "": 4, "U16": 2, "U8": 1}
    return collections.Counter(widths[width] for width in found)


def test_cuda_kernels_move_16_bytes_at_once(cuda_code):  # noqa: F811
    """Stores of 16 bytes, and what is read for each of them in one access, of a plane's two bytes in one a plane."""
    kernels = functions(cuda_code[1], KERNELS)
    assert len({name for _, name in kernels}) == 1 + 3 + 12 + 7 + 28
    for key, text in kernels.items():
        loads, stores = (accesses(text, op) for op in ("LDG", "STG"))
        match = re.search(r"(Pack|Unpack|Split|Join)WordsILi(\d)(?:ELi(\d))?", key[1])
        if match is None:
            read = 16 if "switch_bits" in key[1] else 4 if "kernelIfE" in key[1] else 8  # codes of 16 bytes stored
            assert loads[read] >= 7 and stores[16] >= 7, key  # batches of at least four, two and one
            continue
        kind, narrow = match[1], int(match[3] or match[2])  # bits of a code, or planes, of 128 codes a thread
        assert stores[16] >= {"Pack": narrow, "Unpack": 8, "Split": narrow, "Join": 4}[kind], key
        read, count = {"Pack": (16, 8), "Unpack": (2 * narrow, 8), "Split": (16, 8), "Join": (2, 4 * narrow)}[kind]
        assert loads[read] >= count, key
