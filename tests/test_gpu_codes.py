"""What Triton made of the kernels of the integer ops, read without a GPU: wide accesses, no spills."""

import pytest
from test_gpu_code import check_wide_and_exact, compiled_kernels


@pytest.fixture(scope="module")
def triton_kernels():
    return compiled_kernels("aot_codes.py")


def test_triton_moves_all_in_16_bytes_and_spills_nothing(triton_kernels):
    check_wide_and_exact(triton_kernels, 30)
