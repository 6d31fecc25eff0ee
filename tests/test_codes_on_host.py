"""The CUDA loops of the integer ops, run on the host: indexing, rows, tails, alignment, all but launches."""

import ctypes

import oracles
import pytest
import torch
from running import host_library

I64, INT, PTR = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p


class Arguments(ctypes.Structure):
    _fields_ = [("source", PTR), ("to", PTR), ("scale", PTR), ("outer", I64), ("channels", I64), ("inner", I64),
                ("from_bits", INT), ("to_bits", INT), ("threads", INT), ("half_even", ctypes.c_bool),
                ("aligned", ctypes.c_bool)]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_library("codes_on_host", tmp_path_factory)


def call(host, name, source, shape, dtype, out_shape, *, bits=(8, 8), half_even=True, threads=1, aligned=True,
         scale=None):
    """What kernel `name` writes; outer, channels, inner are `shape`. A byte too far would show in the guards."""
    guarded = torch.full((torch.Size(out_shape).numel() + 32,), 77, dtype=dtype)
    out = guarded[16:-16]
    pointers = (source.data_ptr(), out.data_ptr(), None if scale is None else scale.data_ptr())
    getattr(host, name)(ctypes.byref(Arguments(*pointers, *shape, *bits, threads, half_even, aligned)))
    assert (guarded[:16] == 77).all() and (guarded[-16:] == 77).all(), "wrote outside"
    return out.view(out_shape)


RUNS = [(1, 1, 1), (1, 1, 7), (1, 1, 2048), (1, 1, 10007), (3, 5, 33), (2, 3, 2047), (5, 7, 1), (600, 3, 2)]
lanes = pytest.mark.parametrize("threads, aligned", [(1, True), (32, True), (32, False)])


@lanes
@pytest.mark.parametrize("shape", RUNS, ids=str)
def test_codes_one_by_one(host, shape, threads, aligned):
    codes = oracles.random_codes(shape, 8)
    common = dict(bits=(6, 3), half_even=False, threads=threads, aligned=aligned)
    wanted = oracles.switched_all(codes.clamp(-32, 31), 6, 3, "half_up")
    assert torch.equal(call(host, "switch_bits", codes, shape, torch.int8, shape, **common), wanted)
    scale = torch.rand(shape[1]) + 0.1
    values = wanted * (scale * 8).view(1, -1, 1)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        actual = call(host, f"dequantize_{name}", codes, shape, dtype, shape, scale=scale, **common)
        oracles.assert_same(actual, values.to(dtype))


ROWS = [(1, 1), (1, 8), (1, 13), (1, 4096), (1, 20011), (3, 1031), (40, 7), (5, 16)]
blocks = pytest.mark.parametrize("threads, aligned", [(1, True), (4, True), (4, False)])


@blocks
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_packing(host, rows, bits, signed, threads, aligned):
    common = dict(threads=threads, aligned=aligned and rows[0] == 1)
    codes, name = oracles.random_codes(rows, bits, signed), f"{'int' if signed else 'uint'}{bits}"
    shape, wanted = (rows[0], 1, rows[1]), oracles.packed_rows(codes, bits, signed)
    packed = call(host, f"pack_{name}", codes, shape, torch.uint8, wanted.shape, **common)
    assert torch.equal(packed, wanted)
    assert torch.equal(call(host, f"unpack_{name}", packed, shape, codes.dtype, rows, **common), codes)


@blocks
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_to_planes(host, rows, bits, threads, aligned):
    common = dict(threads=threads, aligned=aligned and rows[0] == 1)
    codes, shape = oracles.random_codes(rows, bits), (rows[0], 1, rows[1])
    wanted = oracles.planes_of(codes, bits)
    assert torch.equal(call(host, f"to_planes{bits}", codes, shape, torch.uint8, wanted.shape, **common), wanted)


@blocks
@pytest.mark.parametrize("half_even", [True, False])
@pytest.mark.parametrize("bits, planes", [(2, 2), (2, 3), (2, 8), (3, 5), (5, 5), (7, 8), (8, 8)])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_from_planes(host, rows, bits, planes, half_even, threads, aligned):
    # A plane must begin at 16 bytes too.
    common = dict(threads=threads, aligned=aligned and rows[0] == 1 and (rows[1] + 7) // 8 % 16 == 0)
    codes, rounding = oracles.random_codes(rows, planes), "half_even" if half_even else "half_up"
    source = oracles.planes_of(codes, planes)
    back = call(host, f"from_planes{bits}{planes}", source, (rows[0], 1, rows[1]), torch.int8, rows,
                half_even=half_even, **common)
    assert torch.equal(back, oracles.switched_all(codes, planes, bits, rounding))
