"""What the compiler made of the Triton kernels of per-sample gradient norms, read without a GPU."""

import pytest
from test_gpu_code import compiled_kernels, wide_bytes

SHARED = 99 * 1024  # the least shared memory of a GPU these run on
MMA = {"*fp32": "tf32", "*bf16": "bf16"}


@pytest.fixture(scope="module")
def kernels():
    return compiled_kernels("aot_sample_grad_norm.py")


def test_compiles_for_every_architecture(kernels):
    assert {c: sum(k["name"][0] == c for k in kernels) for c in (80, 90, 100)} == {80: 16, 90: 16, 100: 16}


def test_products_are_on_tensor_cores(kernels):
    for kernel in kernels:
        capability, name, _, dtype, _ = kernel["name"]
        if name != "bias":
            kind = "f16" if capability == 100 and dtype == "*bf16" else MMA[dtype]  # tcgen05 names both 16-bit types so
            assert any(kind in op and "mma" in op for op in kernel["tensor_cores"]), kernel["name"]


def test_neither_spills_nor_wants_more_shared_memory_than_there_is(kernels):
    for kernel in kernels:
        assert kernel["local"] == [] and kernel["stack"] and not any(kernel["stack"]), kernel["name"]
        assert kernel["shared"] <= SHARED, kernel["name"]


def test_matrices_are_read_16_bytes_at_once(kernels):
    """By cp.async into shared memory for tensor cores, else straight; the windows of a convolution cannot be."""
    linear = [kernel for kernel in kernels if kernel["name"][2] == "linear"]
    assert linear
    for kernel in linear:
        assert set(kernel["copies"]) <= {16} and not [op for op in kernel["loads"] if op.endswith((".b16", ".b8"))]
        assert wide_bytes(kernel["loads"]) + len(kernel["copies"]) > 0, kernel["name"]
        narrow = [op for op in kernel["loads"] if ".v4." not in op]
        assert narrow == [], (kernel["name"], narrow)
