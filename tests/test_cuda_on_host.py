"""The CUDA loops, run on the host: indexing, whole tiles and the rest, alignment, sums - all but warps and launches."""

import ctypes
import itertools

import oracles
import pytest
import torch
from cuda_runs import Run
from running import host_library

import mbq_kernels as mbq


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    loaded = host_library("cuda_on_host", tmp_path_factory)
    loaded.blocks.restype = ctypes.c_int64
    return loaded


SHAPES = [(1, 1, 1), (1, 1, 7), (1, 1, 2048), (1, 1, 2053), (1, 1, 10000), (3, 5, 33), (1, 4, 4608), (2, 3, 2047),
          (5, 7, 1), (600, 3, 2), (1, 9, 31), (257, 16, 1), (70, 300, 3)]
BITS = (8, 4, 1)


def check_against_the_cpu(run, bits):
    leaves = [t.clone().requires_grad_() for t in (run.x, run.scale, *([] if run.shift is None else [run.shift]))]
    expected = mbq.fake_quantize_multi(*leaves, bits=bits, axis=1, grad_factor=1.0)
    for one, other in zip(run.forward(), expected, strict=True):
        oracles.assert_same(one, other)
    wanted = torch.autograd.grad(expected, leaves, run.grads)
    actual = run.backward()
    oracles.assert_same(actual[0], wanted[0], "grad x")
    for one, other in zip(actual[1:], wanted[1:], strict=False):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * (run.shape[0] * run.shape[2]) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("aligned", [True, False])
def test_fake_quantize(host, shape, dtype, aligned):
    check_against_the_cpu(Run(host, shape, dtype, [oracles.bounds(b, True) for b in BITS], aligned), BITS)


@pytest.mark.parametrize("bits", [(4,), (8, 4, 3, 2), (8, 7, 6, 5, 4, 3)], ids=len)
@pytest.mark.parametrize("shape", [(1, 1, 10000), (2, 3, 2047), (1, 4, 4608), (257, 16, 1)], ids=str)
def test_fake_quantize_without_offsets(host, shape, bits):
    run = Run(host, shape, torch.float32, [oracles.bounds(b, True) for b in bits], slots=8 if len(bits) > 4 else None)
    run.shift = None
    check_against_the_cpu(run, bits)


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 40001), (2, 3, 20470), (2, 2, 20480), (1, 4, 600), (1, 9, 130)], ids=str)
@pytest.mark.parametrize("bits", [(4,), (8, 4, 2)], ids=len)
def test_warps_that_take_several_tiles(host, shape, bits, offsets):
    """As of a large tensor: enough blocks are one."""
    run = Run(host, shape, torch.float32, [oracles.bounds(b, True) for b in bits])
    run.enough_blocks = 1
    run.shift = run.shift if offsets else None
    check_against_the_cpu(run, bits)


SCALES = [2.0 ** -149, 3 * 2.0 ** -140, 2.0 ** -100, 2.0 ** -100 * (1 + 2.0 ** -23), 1e-20, 0.1234, 0.3, 1.0, 6.0,
          2.0 ** 100 * (1 - 2.0 ** -24), 2.0 ** 100, 1e38]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("offset", [None, 0.0], ids=["plain", "offset"])
def test_awkward_values_and_scales(host, bits, dtype, offset):
    """Values and gradients of x are the CPU's bit for bit, on both sides of the scales that have exact reciprocals."""
    lo, hi = oracles.bounds(bits, True)
    rows = []
    for scale in SCALES:
        tiny = scale * torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64) * 2.0 ** -149
        row = torch.cat([oracles.awkward_values(scale, lo, hi, dtype), tiny.to(dtype), -tiny.to(dtype)])
        rows.append(torch.cat([row, -row]).repeat(5)[: 2560])
    run = Run(host, (1, len(SCALES), min(map(len, rows)) // 8 * 8), dtype, [(lo, hi)])
    run.x = torch.stack([row[: run.shape[2]] for row in rows])[None]
    run.grads = [torch.randn(run.shape).to(dtype)]
    run.scale = torch.tensor([SCALES])
    run.shift = None if offset is None else torch.full_like(run.scale, offset)
    x = run.x.clone().requires_grad_()
    expected = mbq.fake_quantize(x, run.scale[0], bits=bits, axis=1)
    oracles.assert_same(run.forward()[0], expected)
    oracles.assert_same(run.backward()[0], torch.autograd.grad(expected, x, run.grads[0])[0], "grad x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 1, 10000), (1, 4, 4608), (2, 3, 2047), (257, 16, 1)], ids=str)
@pytest.mark.parametrize("bits, signed", [(8, True), (8, False), (4, True), (1, True)])
@pytest.mark.parametrize("aligned, offset", [(True, False), (True, True), (False, False)])
def test_quantize_codes(host, shape, dtype, bits, signed, aligned, offset):
    """The bytes of the CPU, and the lowest code for NaN, which the CPU refuses."""
    run = Run(host, shape, dtype, [oracles.bounds(bits, signed)], aligned)
    if not offset:
        run.shift = None
    awkward = oracles.awkward_values(run.scale[0, 0].item(), run.lo.item(), run.hi.item(), dtype)[: shape[2]]
    run.x[0, 0, : len(awkward)] = awkward.nan_to_num(torch.inf, torch.inf, -torch.inf)
    wanted = mbq.quantize_codes(run.x, run.scale[0], run.shift[0] if offset else None, bits=bits, signed=signed, axis=1)
    run.x.view(-1)[-1] = torch.nan
    wanted.view(-1)[-1] = int(run.lo)
    codes = torch.full_like(wanted, 77)
    run.call(f"codes_{'' if signed else 'u'}int8", [codes], run.x)
    assert torch.equal(codes, wanted)


@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan")])
def test_scales_that_are_no_numbers_of_their_own(host, scale):
    """What division by them gives: the CPU refuses them, so that the reference says what it is."""
    run = Run(host, (1, 1, 1024), torch.float32, [oracles.bounds(4, True)])
    run.x[0, 0, :8] = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-45])
    run.scale, run.shift = torch.tensor([[scale]]), None
    code = torch.clamp(torch.round(run.x / scale), -8, 7)
    oracles.assert_same(run.forward()[0], code * scale)


@pytest.mark.parametrize("units, floors", [(True, True), (True, False), (False, True)], ids=["both", "unit", "floor"])
@pytest.mark.parametrize("shape", [(1, 1, 2053), (3, 5, 33), (257, 16, 1)], ids=str)
def test_scales_in_units_and_under_their_floors(host, shape, units, floors):
    """Bit for bit what the scales that are computed with give; half of them are below their floors."""
    ranges = [oracles.bounds(b, True) for b in (8, 4, 2)]
    run, plain = (Run(host, shape, torch.float32, ranges) for _ in range(2))
    plain.x, plain.grads, plain.shift, plain.scale = run.x, run.grads, run.shift, run.scale
    if units:
        run.unit = torch.rand_like(run.scale) + 0.5
        plain.scale = run.scale * run.unit
    if floors:
        run.floor = torch.where(torch.rand_like(run.scale) < 0.5, plain.scale * 2, plain.scale / 2)
        run.scale = torch.where(plain.scale < run.floor, -run.scale, run.scale)
        plain.scale = torch.maximum(plain.scale, run.floor)
    for kind in ("", "_double"):
        for one, other in zip(run.forward("forward" + kind), plain.forward("forward" + kind), strict=True):
            oracles.assert_same(one, other)
        grad_x, scales, shifts = run.backward("backward" + kind)
        wanted = plain.backward("backward" + kind)
        oracles.assert_same(grad_x, wanted[0], "grad x")
        oracles.assert_same(shifts, wanted[2], "shifts")
        torch.testing.assert_close(scales * (run.unit if units else 1), wanted[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, 1, 2053), (3, 5, 33), (257, 16, 1)], ids=str)
def test_double_round(host, shape):
    bits = (8, 4, 2)
    run = Run(host, shape, torch.float32, [oracles.bounds(b, True) for b in bits])
    run.scale, run.shift, run.together = (run.scale[:1] / 16).repeat(len(bits), 1), None, True
    leaves = [t.clone().requires_grad_() for t in (run.x, run.scale[0])]
    expected = mbq.double_round(*leaves, bits=bits, axis=1, rounding="half_up", grad_factor=1.0)
    for one, other in zip(run.forward("forward_double"), expected, strict=True):
        oracles.assert_same(one, other)
    wanted = torch.autograd.grad(expected, leaves, run.grads)
    actual = run.backward("backward_double")
    oracles.assert_same(actual[0], wanted[0], "grad x")
    torch.testing.assert_close(actual[1][0], wanted[1], rtol=1e-4, atol=1e-3 * (shape[0] * shape[2]) ** 0.5)


@pytest.mark.parametrize("shape", [(1, 1, 2053), (3, 5, 33), (257, 16, 1)], ids=str)
def test_fake_quantize_affine(host, shape):
    run = Run(host, shape, torch.float32, [(-8, 7)])
    leaves = [t.clone().requires_grad_() for t in (run.x, run.scale[0], run.shift[0])]
    expected = mbq.fake_quantize_affine(*leaves, quant_min=-8, quant_max=7, axis=1)
    oracles.assert_same(run.forward("forward_affine")[0], expected)
    wanted = torch.autograd.grad(expected, leaves, run.grads[0])
    actual = run.backward("backward_affine")
    oracles.assert_same(actual[0], wanted[0], "grad x")
    for one, other in zip(actual[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one[0], other, rtol=1e-4, atol=1e-3 * (shape[0] * shape[2]) ** 0.5)


@pytest.mark.parametrize("shape", [(1, 1, 2053), (3, 5, 33), (257, 16, 1)], ids=str)
def test_general_affine_divides_exactly_whatever_the_codes(host, shape):
    """Inverted scales would give quotients that are off in the last place from 1024 on."""
    run = Run(host, shape, torch.float32, [(-32768, 32767)])
    run.x *= 10000
    leaves = [t.clone().requires_grad_() for t in (run.x, run.scale[0], run.shift[0])]
    expected = mbq.fake_quantize_affine(*leaves, quant_min=-32768, quant_max=32767, axis=1, quotient="division",
                                        zero_point_form="before_rounding", mask="position", grad_product=True)
    oracles.assert_same(run.forward("forward_general")[0], expected)
    assert (expected.detach().abs() > 2000 * leaves[1].max()).any()
    wanted = torch.autograd.grad(expected, leaves, run.grads[0])
    actual = run.backward("backward_general")
    oracles.assert_same(actual[0], wanted[0], "grad x")
    for one, other in zip(actual[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one[0], other, rtol=1e-4, atol=0.1 * (shape[0] * shape[2]) ** 0.5)


ORDERS = list(itertools.permutations(range(4)))


@pytest.mark.parametrize("shape, blocks", [((1, 1, 8000), 4), ((2, 2, 1900), 4), ((8, 2, 500), 4), ((57, 256, 1), 4)],
                         ids=["one channel", "two channels", "warps", "columns"])
def test_sums_are_the_same_whichever_block_is_last(host, shape, blocks):
    """Bit for bit, in every order in which the blocks of a launch can end; every counter is 0 again after each."""
    assert host.blocks(*map(ctypes.c_int64, shape)) == blocks
    run = Run(host, shape, torch.float32, [(-8, 7)])
    expected = run.backward()
    for order in ORDERS:
        run.order = torch.tensor(order, dtype=torch.int32)
        for one, other in zip(run.backward(), expected, strict=True):
            assert torch.equal(one, other) and not one.isnan().any()


@pytest.mark.parametrize("launches", [[0] * 4, [0] * 6, [0, 0, 1, 1, 1], [0, 0, 1, 2, 2]], ids=str)
def test_one_team_of_every_launch_is_the_last(host, launches):
    """In every order of their tickets, on counters that three launches in turn leave as they found them."""
    kinds = max(launches) + 1
    teams = (ctypes.c_uint * kinds)(*(launches.count(launch) for launch in range(kinds)))
    counters = (ctypes.c_uint * kinds)()
    for order in sorted(set(itertools.permutations(launches))):
        turns = list(order) * 3
        last = (ctypes.c_bool * len(turns))()
        host.take_tickets((ctypes.c_int * len(turns))(*turns), len(turns), teams, counters, last)
        assert not any(counters)
        ends = [max(i for i, launch in enumerate(order) if launch == one) for one in range(kinds)]
        assert [i % len(order) for i, is_last in enumerate(last) if is_last] == sorted(ends) * 3


@pytest.mark.parametrize("blocks", [(5,), (1, 1), (3, 1, 4), (1, 700, 2)], ids=str)
def test_every_block_works_for_its_item(host, blocks):
    items = (ctypes.c_int * sum(blocks))(*[-1] * sum(blocks))
    host.items_of_blocks((ctypes.c_int64 * len(blocks))(*blocks), len(blocks), items)
    assert list(items) == [i for i, count in enumerate(blocks) for _ in range(count)]


def test_a_launch_takes_no_more_than_its_batch_and_its_grid(host):
    def takes(*blocks):
        return bool(host.takes(*map(ctypes.c_int64, blocks)) & 1)

    host.takes.restype = ctypes.c_uint8
    assert not takes(1, 1, 1, 1)  # four items for three places
    assert not takes(2**30, 2**30, 1, 1) and not takes(2**31, 1, 1, 1)
