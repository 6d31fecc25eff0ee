"""The CUDA loops of switched_linear, run on the host: rows, columns, tails, alignment, all but launches."""

import ctypes

import pytest
import torch
from running import host_library
from test_switched_linear import lowered, planes_of

I64, INT, FLAG, PTR = ctypes.c_int64, ctypes.c_int, ctypes.c_bool, ctypes.c_void_p


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_library("code_rows_on_host", tmp_path_factory)


layouts = pytest.mark.parametrize("layout", ["codes", "planes"])
switches = pytest.mark.parametrize("high_bits, bits, rounding", [
    (8, 8, "half_up"), (8, 7, "half_up"), (8, 4, "half_up"), (8, 4, "half_even"), (8, 2, "half_even"),
    (5, 2, "half_up"), (5, 3, "half_even")])


def stored(rows, columns, layout, high_bits, bits, rounding):
    """Return (the weight in float64, its scale, what the host functions are told of it; keep the last one alive)."""
    top = 2 ** (high_bits - 1)
    codes = torch.randint(-top, top, (rows, columns), dtype=torch.int8)
    store = codes if layout == "codes" else planes_of(codes, high_bits)
    read = 0 if layout == "codes" else min(bits + 1, high_bits) if rounding == "half_up" else high_bits
    row_bytes = store.shape[-1]
    aligned = row_bytes % (16 if layout == "codes" else 4) == 0
    scale = torch.rand(rows) + 0.1
    weight = lowered(codes, high_bits, bits, rounding) * scale.double().view(-1, 1) * 2 ** (high_bits - bits)
    told = (PTR(store.data_ptr()), I64(rows), I64(columns), I64(row_bytes), INT(read), INT(high_bits), INT(bits),
            FLAG(rounding == "half_up"), FLAG(aligned), PTR(scale.data_ptr()))
    return weight, told, (store, scale)


@pytest.mark.parametrize("columns", [1, 31, 64, 130])
@layouts
@switches
def test_cuda_loops_on_the_host(host, columns, layout, high_bits, bits, rounding):
    rows, count = 7, 5
    weight, told, kept = stored(rows, columns, layout, high_bits, bits, rounding)
    x, grad = torch.randn(count, columns), torch.randn(count, rows)
    y, grad_x = torch.full((count, rows), torch.nan), torch.full((count, columns), torch.nan)
    host.code_rows(*told, PTR(x.data_ptr()), I64(count), PTR(y.data_ptr()), PTR(grad.data_ptr()),
                   PTR(grad_x.data_ptr()))
    torch.testing.assert_close(y.double(), x.double() @ weight.T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grad_x.double(), grad.double() @ weight, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [1, 130, 256])
@layouts
@switches
def test_what_tensor_cores_multiply(host, dtype, columns, layout, high_bits, bits, rounding):
    rows, count = 19, 10
    weight, told, kept = stored(rows, columns, layout, high_bits, bits, rounding)
    x, y = torch.randn(count, columns).to(dtype), torch.full((count, rows), torch.nan, dtype=torch.float64)
    getattr(host, f"code_tiles_{str(dtype).removeprefix('torch.')}")(*told, PTR(x.data_ptr()), I64(count),
                                                                     PTR(y.data_ptr()))
    torch.testing.assert_close(y, x.double() @ weight.T, rtol=1e-12, atol=1e-10)


def test_cuda_clamps_codes_outside_their_range(host):
    codes, scale, x, y = torch.tensor([[-128, -9, 7, 100]]).char(), torch.ones(1), torch.eye(4), torch.ones(4)
    grad, grad_x = torch.zeros(4, 1), torch.zeros(4, 4)
    host.code_rows(PTR(codes.data_ptr()), I64(1), I64(4), I64(4), INT(0), INT(4), INT(4), FLAG(True), FLAG(False),
         PTR(scale.data_ptr()), PTR(x.data_ptr()), I64(4), PTR(y.data_ptr()), PTR(grad.data_ptr()),
         PTR(grad_x.data_ptr()))
    assert y.tolist() == [-8, -8, 7, 7]
