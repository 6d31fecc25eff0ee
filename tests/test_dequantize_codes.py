"""dequantize_codes: switch and dequantize in one pass, bit for bit (code_l * 2^D) * scale."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

SHAPES = [((1,), None), ((7,), None), ((2053,), None), ((3, 1031), 0), ((3, 50, 3), 1), ((5, 6, 2, 3), 1),
          ((4, 3, 17), -1), ((2, 33, 40), -2), ((40, 1030), 1), ((0,), None), ((4, 0), 0), ((), None)]
shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=lambda v: str(v).replace(" ", ""))
PAIRS = [(high, low) for high in range(2, 9) for low in range(2, high + 1)]


def expected(codes, scale, high, low, axis=None, dtype=torch.float32, rounding="half_even"):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    switched = oracles.switched_all(codes.cpu(), high, low, rounding)
    return (switched.to(wide) * oracles.spread(scale.cpu().to(wide) * 2 ** (high - low), codes, axis)).to(dtype)


@pytest.mark.parametrize("rounding", ["half_even", "half_up"])
@pytest.mark.parametrize("high, low", PAIRS)
def test_every_code(device, high, low, rounding):
    lo, hi = oracles.bounds(high, True)
    codes = torch.arange(lo, hi + 1, dtype=torch.int8, device=device)
    scale = torch.tensor(0.3, device=device)
    actual = mbq.dequantize_codes(codes, scale, from_bits=high, to_bits=low, rounding=rounding)
    oracles.assert_same(actual, expected(codes, scale, high, low, rounding=rounding))


@shapes
@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
def test_shapes_layouts_and_dtypes(device, shape, axis, dtype):
    codes = oracles.random_codes(shape, 8)
    scale = torch.rand(1 if axis is None else shape[axis]) * 0.5 + 0.3
    wanted = expected(codes, scale, 8, 3, axis, dtype)
    for name, given in oracles.layouts(codes) if codes.dim() and codes.numel() else [("as it is", codes)]:
        given = given.to(device)
        actual = mbq.dequantize_codes(given, scale.to(device), to_bits=3, axis=axis, dtype=dtype)
        oracles.assert_same(actual, wanted, name)
        assert actual.stride() == torch.empty_like(given).stride(), name


def test_channels_last_and_float64(device, backend):
    codes = oracles.random_codes((2, 5, 4, 3), 8).to(device).to(memory_format=torch.channels_last)
    scale = torch.rand(5, dtype=torch.float64, device=device) + 0.1
    actual = mbq.dequantize_codes(codes, scale, to_bits=4, axis=1)
    assert actual.stride() == codes.stride()
    oracles.assert_same(actual, expected(codes, scale, 8, 4, 1))
    if device == "cpu" and backend != "triton":
        for given, axis in ((scale, 1), (scale[:1], None)):
            actual = mbq.dequantize_codes(codes, given, to_bits=4, axis=axis, dtype=torch.float64)
            oracles.assert_same(actual, expected(codes, given, 8, 4, axis, torch.float64))
    elif device == "cuda":
        with pytest.raises(TypeError, match="^dequantize_codes: dtype must be float32, bfloat16 or float16 on cuda"):
            mbq.dequantize_codes(codes, scale, to_bits=4, axis=1, dtype=torch.float64)


def test_equal_bit_widths_are_the_values_of_fake_quantize(device):
    x, scale = torch.randn(6, 333, device=device), torch.rand(6, device=device) * 0.1 + 0.05
    for bits in range(2, 9):
        codes = mbq.quantize_codes(x, scale, bits=bits, axis=0)
        values = mbq.dequantize_codes(codes, scale, from_bits=bits, to_bits=bits, axis=0)
        oracles.assert_same(values, mbq.fake_quantize(x, scale, bits=bits, axis=0))


def test_one_scale_of_any_shape(device):
    codes = oracles.random_codes((3, 5), 8).to(device)
    for shape in ((), (1,), (1, 1)):
        scale = torch.full(shape, 0.7, device=device, dtype=torch.bfloat16)
        for axis in (None, 0):
            actual = mbq.dequantize_codes(codes, scale, to_bits=5, axis=axis)
            oracles.assert_same(actual, expected(codes, scale.float(), 8, 5))


@pytest.mark.parametrize("at", [0, 39999])
def test_a_code_out_of_range(device, backend, at):
    codes, scale = oracles.random_codes((40000,), 4), torch.tensor(0.5, device=device)
    codes[at] = 8
    if device == "cuda" or backend == "triton":
        actual = mbq.dequantize_codes(codes.to(device), scale, from_bits=4, to_bits=2)
        oracles.assert_same(actual, expected(codes.clamp(-8, 7), scale, 4, 2))
        return
    with pytest.raises(RuntimeError, match="^dequantize_codes: codes must be between -8 and 7 at 4 bits, got 8$"):
        mbq.dequantize_codes(codes, scale, from_bits=4, to_bits=2)


def test_scale_that_requires_a_gradient_is_refused(device):
    codes, scale = oracles.random_codes((9,), 8).to(device), torch.ones(1, device=device).requires_grad_()
    with pytest.raises(ValueError, match="^dequantize_codes: scale must not require a gradient"):
        mbq.dequantize_codes(codes, scale, to_bits=4)
    with torch.no_grad():
        out = mbq.dequantize_codes(codes, scale, to_bits=4)
    assert torch.equal(out, mbq.dequantize_codes(codes, scale.detach(), to_bits=4)) and not out.requires_grad


ERRORS = [
    ({"codes": torch.ones(4, 3)}, TypeError, "codes must be torch.int8, got torch.float32"),
    ({"scale": 1.0}, TypeError, "scale must be a tensor, got float"),
    ({"scale": torch.ones(1, dtype=torch.int8)}, TypeError, "scale must be float32.*got torch.int8"),
    ({"scale": torch.ones(4)}, ValueError, "scale must have 1 element without axis, got 4"),
    ({"scale": torch.ones(3), "axis": 0}, ValueError, r"scale must have 1 or 4 elements \(codes has shape \(4, 3\)"),
    ({"scale": torch.tensor([0.0])}, RuntimeError, "scale must be finite and > 0, got 0"),
    ({"scale": torch.tensor([1, torch.nan, 1, 1]), "axis": 0}, RuntimeError,
     r"scale must be finite and > 0, got nan \(element 1\)"),
    ({"axis": 2}, ValueError, r"axis must be in \[-2, 2\) for codes of shape"),
    ({"to_bits": 1}, ValueError, "to_bits must be between 2 and 8, got 1"),
    ({"from_bits": 3}, ValueError, "to_bits must be at most from_bits, 3, got 4"),
    ({"dtype": torch.int32}, TypeError, "dtype must be float32.*got torch.int32"),
    ({"rounding": "up"}, ValueError, "rounding must be 'half_even' or 'half_up', got 'up'"),
]


@pytest.mark.parametrize("changes, error, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_errors(name, changes, error, message):
    arguments = {"codes": torch.ones(4, 3, dtype=torch.int8), "scale": torch.ones(1), "to_bits": 4, **changes}
    with mbq.use_backend(name), pytest.raises(error, match="^dequantize_codes: " + message):
        mbq.dequantize_codes(**arguments)
