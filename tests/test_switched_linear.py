"""switched_linear against float64 and Python integers: codes and planes, all bit-widths, both roundings, gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from running import lines_by_instruction_set

import mbq_kernels as mbq

SHAPES = [(1, 1, 1), (1, 40, 1030), (2, 9, 64), (3, 1, 7), (5, 9, 1050), (67, 7, 129), (64, 37, 32)]  # rows, N, K
ROUNDINGS = ("half_up", "half_even")
LAYOUTS = ("codes", "planes")


def lower(code, drop, bits, rounding):
    """code / 2^drop rounded and clamped, in Python integers"""
    whole, rest = divmod(code, 2**drop)
    up = 2 * rest > 2**drop or (2 * rest == 2**drop and (rounding == "half_up" or whole % 2 == 1))
    return min(whole + up, 2 ** (bits - 1) - 1)


def lowered(codes, high_bits, bits, rounding):
    table = {code: lower(code, high_bits - bits, bits, rounding) for code in range(-128, 128)}
    rows = [[table[code] for code in row] for row in codes.tolist()]
    return torch.tensor(rows, dtype=torch.float64).view(codes.shape)


def planes_of(codes, high_bits=8):
    """(high_bits, N, ceil(K / 8)): plane p holds bit high_bits - 1 - p, eight columns a byte, low bits first"""
    rows, columns = codes.shape
    planes = torch.zeros(high_bits, rows, (columns + 7) // 8, dtype=torch.uint8)
    for p, k in itertools.product(range(high_bits), range(columns)):
        bit = (codes[:, k].int() >> (high_bits - 1 - p)) & 1
        planes[p, :, k // 8] |= (bit << (k % 8)).to(torch.uint8)
    return planes


def stored(codes, layout, high_bits=8):
    return codes if layout == "codes" else planes_of(codes.cpu(), high_bits)


def make(rows, outputs, inputs, high_bits=8, dtype=torch.float32):
    top = 2 ** (high_bits - 1)
    codes = torch.randint(-top, top, (outputs, inputs), dtype=torch.int8)
    return (torch.randn(rows, inputs).to(dtype), codes, torch.rand(outputs) * 0.1 + 0.01, torch.randn(outputs))


def exact(x, codes, scale, bias, high_bits, bits, rounding):
    """(y in float64, x_hat in float64)"""
    weight = lowered(codes, high_bits, bits, rounding) * scale.double().view(-1, 1) * 2 ** (high_bits - bits)
    return x.double() @ weight.T + (0 if bias is None else bias.double()), weight


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("high_bits", [8, 6, 2])
def test_every_code_at_every_bit_width(device, layout, high_bits):
    """x is the unit matrix, scale 1: the result is the code itself, for all of them and both roundings."""
    top = 2 ** (high_bits - 1)
    codes = torch.arange(-top, top, dtype=torch.int8).view(-1, 4)
    store = stored(codes, layout, high_bits).to(device)
    x = torch.eye(codes.shape[1], device=device)
    for bits, rounding in itertools.product(range(2, high_bits + 1), ROUNDINGS):
        y = mbq.switched_linear(x, store, torch.ones(1, device=device), high_bits=high_bits, bits=bits,
                                rounding=rounding)
        want = lowered(codes, high_bits, bits, rounding).T * 2 ** (high_bits - bits)
        assert torch.equal(y.cpu().double(), want), (bits, rounding)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward(device, backend, shape, dtype):
    """Within twice the error of the dequantized weight in torch's linear, both against float64; planes = codes."""
    if backend == "triton" and device == "cpu" and shape[0] > 60 and dtype != torch.float32:
        pytest.skip("the interpreter is slow: many rows in float32 alone")
    x, codes, scale, bias = make(*shape, dtype=dtype)
    planes = planes_of(codes).to(device)
    for bits, rounding in [(8, "half_up"), (5, "half_even"), (4, "half_up"), (2, "half_up")]:
        want, weight = exact(x, codes, scale, bias, 8, bits, rounding)
        common = F.linear(x, weight.to(dtype), bias.to(dtype)).double()
        size = (x.double().abs() @ weight.abs().T + bias.abs()).max()
        slack = max(2 * (common - want).abs().max(), torch.finfo(dtype).eps * size)
        y, from_planes = (mbq.switched_linear(x.to(device), store.to(device), scale.to(device), bias.to(device),
                                              bits=bits, rounding=rounding) for store in (codes, planes))
        assert y.dtype == dtype and y.shape == want.shape
        assert (y.cpu().double() - want).abs().max() <= slack, (bits, rounding)
        if backend != "triton":  # there the tiles of planes are other ones
            assert torch.equal(y, from_planes), (bits, rounding)
        assert (from_planes.cpu().double() - want).abs().max() <= slack, (bits, rounding)


@pytest.mark.parametrize("shape", [(), (2, 3), (0,), (2, 0)], ids=str)
def test_any_leading_shape(device, shape):
    x, codes, scale, bias = make(6, 5, 70)
    x = x[:torch.Size(shape).numel()].reshape(*shape, 70)
    y = mbq.switched_linear(x.to(device), codes.to(device), scale.to(device), bias.to(device), bits=4).cpu()
    assert y.shape == (*shape, 5)
    torch.testing.assert_close(y.double(), exact(x, codes, scale, bias, 8, 4, "half_up")[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outputs, inputs", [(0, 9), (4, 0), (0, 0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_weight(device, layout, outputs, inputs):
    x, codes, scale, bias = (t.to(device) for t in make(3, outputs, inputs))
    store = stored(codes, layout).to(device)
    x.requires_grad_()
    y = mbq.switched_linear(x, store, torch.ones(1, device=device), bias, bits=3)
    assert torch.equal(y, bias.expand(3, outputs))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_non_contiguous(device, layout):
    x, codes, scale, bias = (t.to(device) for t in make(4, 10, 50))
    store = stored(codes, layout).to(device)
    want = mbq.switched_linear(x, store, scale, bias, bits=4)
    strided = (torch.stack([x, x], -1)[..., 0], store.transpose(-1, -2).contiguous().transpose(-1, -2),
               torch.stack([scale, scale], -1)[:, 0], torch.stack([bias, bias], -1)[:, 0])
    assert not any(t.is_contiguous() for t in strided)
    torch.testing.assert_close(mbq.switched_linear(*strided, bits=4), want)


def test_one_scale_for_all(device):
    x, codes, _, _ = (t.to(device) for t in make(2, 5, 40))
    scale = torch.tensor(0.3, device=device)
    assert torch.equal(mbq.switched_linear(x, codes, scale, bits=4),
                       mbq.switched_linear(x, codes, scale.expand(5), bits=4))


@pytest.mark.parametrize("bits, high_bits", [(2, 8), (4, 8), (7, 8), (8, 8), (3, 5), (5, 5)])
def test_half_up_needs_only_the_first_planes(device, bits, high_bits):
    x, codes, scale, bias = (t.to(device) for t in make(3, 11, 77, high_bits))
    planes = planes_of(codes.cpu(), high_bits).to(device)
    enough = min(bits + 1, high_bits)
    want = mbq.switched_linear(x, planes, scale, bias, high_bits=high_bits, bits=bits)
    poisoned = planes.clone()
    poisoned[enough:] = 0xA5
    for store in (planes[:enough], poisoned):
        assert torch.equal(mbq.switched_linear(x, store, scale, bias, high_bits=high_bits, bits=bits), want)
    with pytest.raises(ValueError, match=f"must have {enough} to {high_bits} planes"):
        mbq.switched_linear(x, planes[:enough - 1], scale, bias, high_bits=high_bits, bits=bits)
    with pytest.raises(ValueError, match="a tie shows only in the last"):
        mbq.switched_linear(x, planes[:-1], scale, high_bits=high_bits, bits=bits, rounding="half_even")


@pytest.mark.parametrize("rows", [1, 3])
def test_nan_and_infinity_go_where_a_product_takes_them(device, rows):
    for value in (torch.nan, torch.inf, -torch.inf):
        x, codes, scale, bias = make(rows, 12, 90)
        x[0, 17] = value
        codes[:4, 17] = 0
        want, _ = exact(x, codes, scale, bias, 8, 4, "half_up")
        y = mbq.switched_linear(*(t.to(device) for t in (x, codes, scale, bias)), bits=4).cpu().double()
        assert torch.equal(y.isnan(), want.isnan()) and want.isnan().any()
        assert torch.equal(y[~want.isfinite()].nan_to_num(0), want[~want.isfinite()].nan_to_num(0))


BAD = [
    (TypeError, "x must be float32, bfloat16 or float16, got torch.float64", {"x": torch.randn(2, 8).double()}),
    (TypeError, "x must be a tensor", {"x": 3}),
    (ValueError, r"x must be \(\.\.\., K\), got a 0-dim", {"x": torch.tensor(1.0)}),
    (TypeError, "store must be int8 codes", {"store": torch.zeros(4, 8)}),
    (TypeError, "store must be int8 codes", {"store": torch.zeros(4, 8, dtype=torch.uint8)}),
    (TypeError, "store must be int8 codes", {"store": torch.zeros(8, 4, 1, dtype=torch.int8)}),
    (ValueError, "store must have rows for 8 inputs", {"store": torch.zeros(4, 7, dtype=torch.int8)}),
    (ValueError, "store must have rows for 8 inputs", {"store": torch.zeros(8, 4, 2, dtype=torch.uint8)}),
    (ValueError, "store must have 5 to 8 planes", {"store": torch.zeros(9, 4, 1, dtype=torch.uint8)}),
    (ValueError, "scale must have 1 or 4 elements", {"scale": torch.ones(3)}),
    (ValueError, "scale must have 1 or 4 elements", {"scale": torch.ones(2, 2)}),
    (TypeError, "scale must be float32", {"scale": torch.ones(4, dtype=torch.int32)}),
    (ValueError, "bias must have 4 elements", {"bias": torch.ones(1)}),
    (TypeError, "high_bits must be an integer", {"high_bits": 8.0}),
    (ValueError, "high_bits must be between 2 and 8, got 9", {"high_bits": 9}),
    (ValueError, "bits must be between 2 and 8, got 1", {"bits": 1}),
    (ValueError, r"bits must be at most high_bits \(3\), got 4", {"high_bits": 3}),
    (ValueError, "rounding must be 'half_up' or 'half_even', got 'up'", {"rounding": "up"}),
]


@pytest.mark.parametrize("error, message, change", BAD, ids=[message for _, message, _ in BAD])
def test_errors(error, message, change):
    arguments = {"x": torch.randn(2, 8), "store": torch.zeros(4, 8, dtype=torch.int8), "scale": torch.ones(4),
                 "bits": 4}
    with pytest.raises(error, match="^switched_linear: " + message):
        mbq.switched_linear(**(arguments | change))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_values_the_cpu_refuses(backend):
    x, codes, scale, _ = make(2, 5, 40)
    with mbq.use_backend(backend):
        for bad in (0.0, -1.0, torch.nan, torch.inf):
            with pytest.raises(RuntimeError, match=r"scale must be finite and > 0, got \S+ \(element 3\)"):
                mbq.switched_linear(x, codes, scale.index_fill(0, torch.tensor(3), bad), bits=4)
        codes = codes.clamp(-8, 7)
        mbq.switched_linear(x, codes, scale, high_bits=4, bits=2)
        codes[4, 39] = 8
        with pytest.raises(RuntimeError, match=r"must hold codes of 4 bits, \[-8, 7\], got others"):
            mbq.switched_linear(x, codes, scale, high_bits=4, bits=2)


PROGRAM = """
import hashlib, itertools, torch, mbq_kernels as mbq
digest = lambda t: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest()
for threads, rows in itertools.product((1, 2, 3), (1, 2, 5, 70)):
    torch.manual_seed(rows)
    torch.set_num_threads(threads)
    x, scale = torch.randn(rows, 1100), torch.rand(90) + .1
    for store in (torch.randint(-128, 128, (90, 1100), dtype=torch.int8),
                  torch.randint(0, 256, (8, 90, 138), dtype=torch.uint8)):
        for bits in (8, 3):
            leaf = x.clone().requires_grad_()
            y = mbq.switched_linear(leaf, store, scale, bits=bits)
            y.square().sum().backward()
            print(rows, digest(y), digest(leaf.grad))
"""


def test_same_bits_for_every_instruction_set_and_thread_count():
    found = [line.split()[1:] for lines in lines_by_instruction_set("switched_linear", PROGRAM) for line in lines]
    count = len(found) // 9
    assert count == 16 and len({value for line in found[:count] for value in line}) == 32
    assert all(found[i * count:(i + 1) * count] == found[:count] for i in range(9))


def test_rows_do_not_depend_on_the_batch():
    """On the CPU a row of x gives the same bits alone and among others."""
    x, codes, scale, bias = make(9, 33, 1500)
    whole = mbq.switched_linear(x, codes, scale, bias, bits=6)
    assert all(torch.equal(mbq.switched_linear(row, codes, scale, bias, bits=6), y)
               for row, y in zip(x, whole, strict=True))
