"""The CUDA loops, run on the host: indexing, heads and tails, alignment, sums - everything but warps and launches."""

import ctypes

import oracles
import pytest
import torch
from running import host_library

import mbq_kernels as mbq

I64, PTR = ctypes.c_int64, ctypes.c_void_p
FIELDS = ["x", "others", "grad_x", "scale", "shift", "unit", "floor", "lo", "hi", "scale_sums", "shift_sums"]


class Arguments(ctypes.Structure):
    _fields_ = [*((name, PTR) for name in FIELDS), ("outer", I64), ("channels", I64), ("inner", I64),
                ("levels", ctypes.c_int), ("lanes", ctypes.c_int), ("aligned", ctypes.c_bool)]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    loaded = host_library("cuda_on_host", tmp_path_factory)
    loaded.channel_sum.restype, loaded.tasks.restype = ctypes.c_double, I64
    return loaded


class Run:
    """One x of (outer, channels, inner) in memory with K quantizers, as the kernels get it."""

    def __init__(self, host, shape, dtype, ranges, lanes, aligned):
        self.host, self.shape, self.dtype = host, shape, dtype
        outer, channels, inner = shape
        count = len(ranges)
        self.x = (torch.randn(shape) * 4).to(dtype)
        self.grads = [torch.randn(shape).to(dtype) for _ in ranges]
        self.scales = torch.rand(count, channels) * 0.5 + 0.3
        self.shifts = torch.randint(-3, 3, (count, channels)).float()
        self.lo, self.hi = (torch.tensor(column, dtype=torch.float32) for column in zip(*ranges, strict=True))
        self.sums = torch.zeros(2, count, host.tasks(I64(outer), I64(channels), I64(inner)), dtype=torch.float64)
        self.lanes, self.aligned, self.units, self.floors = lanes, aligned, None, None

    def call(self, kind, others, grad_x):
        pointers = (PTR * len(others))(*(t.data_ptr() for t in others))
        tensors = (self.x, grad_x, self.scales, self.shifts, self.units, self.floors, self.lo, self.hi,
                   *self.sums)
        values = [PTR() if t is None else PTR(t.data_ptr()) for t in tensors]
        arguments = Arguments(values[0], ctypes.cast(pointers, PTR), *values[1:], *self.shape,
                              len(others), self.lanes, self.aligned)
        getattr(self.host, f"{kind}_{str(self.dtype).removeprefix('torch.')}")(ctypes.byref(arguments))

    def forward(self, kind):
        outs = [torch.full_like(self.x, torch.nan) for _ in self.grads]
        self.call(kind, outs, self.x)
        return outs

    def backward(self, kind):
        grad_x = torch.full_like(self.x, torch.nan)
        self.call(kind, self.grads, grad_x)
        sums = [[[self.host.channel_sum(PTR(row.data_ptr()), *map(I64, self.shape), I64(c))
                  for c in range(self.shape[1])] for row in part] for part in self.sums]
        return grad_x, *(torch.tensor(part, dtype=torch.float64).float() for part in sums)


SHAPES = [(1, 1, 1), (1, 1, 7), (1, 1, 2048), (1, 1, 2053), (1, 1, 10000), (3, 5, 33), (1, 4, 4609), (2, 3, 2047),
          (5, 7, 1), (600, 3, 2), (1, 9, 31), (257, 16, 1)]
BITS = (8, 4, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lanes, aligned", [(1, True), (32, True), (32, False)])
def test_fake_quantize(host, shape, dtype, lanes, aligned):
    run = Run(host, shape, dtype, [oracles.bounds(b, True) for b in BITS], lanes, aligned)
    leaves = [t.clone().requires_grad_() for t in (run.x, run.scales, run.shifts)]
    expected = mbq.fake_quantize_multi(*leaves, bits=BITS, axis=1, grad_factor=1.0)
    for one, other in zip(run.forward("forward"), expected, strict=True):
        oracles.assert_same(one, other)
    wanted = torch.autograd.grad(expected, leaves, run.grads)
    actual = run.backward("backward")
    oracles.assert_same(actual[0], wanted[0], "grad x")
    for one, other in zip(actual[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * (shape[0] * shape[2]) ** 0.5)


@pytest.mark.parametrize("units, floors", [(True, True), (True, False), (False, True)], ids=["both", "unit", "floor"])
@pytest.mark.parametrize("shape", [(1, 1, 2053), (3, 5, 33), (257, 16, 1)], ids=str)
def test_scales_in_units_and_under_their_floors(host, shape, units, floors):
    """Bit for bit what the scales that are computed with give; half of them are below their floors."""
    ranges = [oracles.bounds(b, True) for b in BITS]
    run, plain = (Run(host, shape, torch.float32, ranges, 32, True) for _ in range(2))
    plain.x, plain.grads, plain.shifts, plain.scales = run.x, run.grads, run.shifts, run.scales
    if units:
        run.units = torch.rand_like(run.scales) + 0.5
        plain.scales = run.scales * run.units
    if floors:
        run.floors = torch.where(torch.rand_like(run.scales) < 0.5, plain.scales * 2, plain.scales / 2)
        run.scales = torch.where(plain.scales < run.floors, -run.scales, run.scales)
        plain.scales = torch.maximum(plain.scales, run.floors)
    for kind in ("", "_double"):
        for one, other in zip(run.forward("forward" + kind), plain.forward("forward" + kind), strict=True):
            oracles.assert_same(one, other)
        for one, other in zip(run.backward("backward" + kind), plain.backward("backward" + kind), strict=True):
            oracles.assert_same(one, other)


@pytest.mark.parametrize("shape", [(1, 1, 2053), (3, 5, 33), (257, 16, 1)], ids=str)
def test_double_round(host, shape):
    bits = (8, 4, 2)
    run = Run(host, shape, torch.float32, [oracles.bounds(b, True) for b in bits], 32, True)
    run.scales = (run.scales[:1] / 16).repeat(len(bits), 1)
    outs, actual = run.forward("forward_double"), run.backward("backward_double")
    total = torch.zeros(shape)
    for k, b in enumerate(bits):
        leaves = [t.clone().requires_grad_() for t in (run.x, run.scales[0])]
        expected = mbq.double_round(*leaves, bits=b, axis=1, rounding="half_up", grad_factor=1.0)
        oracles.assert_same(outs[k], expected)
        grad_x, grad_scale = torch.autograd.grad(expected, leaves, run.grads[k])
        total += grad_x
        torch.testing.assert_close(actual[1][k], grad_scale, rtol=1e-4, atol=1e-3 * (shape[0] * shape[2]) ** 0.5)
    oracles.assert_same(actual[0], total, "grad x")


@pytest.mark.parametrize("shape", [(1, 1, 2053), (3, 5, 33), (257, 16, 1)], ids=str)
def test_fake_quantize_affine(host, shape):
    run = Run(host, shape, torch.float32, [(-8, 7)], 32, True)
    leaves = [t.clone().requires_grad_() for t in (run.x, run.scales[0], run.shifts[0])]
    expected = mbq.fake_quantize_affine(*leaves, quant_min=-8, quant_max=7, axis=1)
    oracles.assert_same(run.forward("forward_affine")[0], expected)
    wanted = torch.autograd.grad(expected, leaves, run.grads[0])
    actual = run.backward("backward_affine")
    oracles.assert_same(actual[0], wanted[0], "grad x")
    for one, other in zip(actual[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one[0], other, rtol=1e-4, atol=1e-3 * (shape[0] * shape[2]) ** 0.5)


@pytest.mark.parametrize("blocks", [(5,), (1, 1), (3, 1, 4), (1, 700, 2)], ids=str)
def test_every_block_works_for_its_item(host, blocks):
    items = (ctypes.c_int * sum(blocks))(*[-1] * sum(blocks))
    host.items_of_blocks((I64 * len(blocks))(*blocks), len(blocks), items)
    assert list(items) == [i for i, count in enumerate(blocks) for _ in range(count)]


def test_a_launch_takes_no_more_than_its_batch_and_its_grid(host):
    def takes(*blocks):
        return bool(host.takes(*map(I64, blocks)) & 1)

    host.takes.restype = ctypes.c_uint8
    assert not takes(1, 1, 1, 1)  # four items for three places
    assert not takes(2**30, 2**30, 1, 1) and not takes(2**31, 1, 1, 1)
