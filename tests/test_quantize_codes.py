"""quantize_codes: the codes of fake_quantize as integers, against NumPy's."""

import numpy as np
import oracles
import pytest
import torch

import mbq_kernels as mbq

SHAPES = [((1,), None), ((7,), None), ((2053,), None), ((3, 1031), 0), ((3, 50, 3), 1), ((5, 6, 2, 3), 1),
          ((4, 3, 17), -1), ((0,), None), ((4, 0), 0), ((), None)]
shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def expected(x, scale, offset=None, *, bits, signed, axis=None):
    code = oracles.codes(oracles.positions(x, scale, offset, axis), bits, signed)
    return torch.from_numpy(np.asarray(code)).to(torch.int8 if signed else torch.uint8)


@shapes
@dtypes
@pytest.mark.parametrize("bits, signed", [(8, True), (8, False), (4, False), (2, True), (1, True), (1, False)])
def test_codes(device, shape, axis, dtype, bits, signed):
    x = (torch.randn(shape) * 2 ** (bits - 1)).to(dtype)
    count = 1 if axis is None else shape[axis]
    scale, offset = torch.rand(count) * 0.5 + 0.3, torch.randn(count)
    for o in (None, offset):
        wanted = expected(x, scale, o, bits=bits, signed=signed, axis=axis)
        for name, given in oracles.layouts(x) if x.dim() and x.numel() else [("as it is", x)]:
            given = given.to(device)
            actual = mbq.quantize_codes(given, scale.to(device), None if o is None else o.to(device),
                                        bits=bits, signed=signed, axis=axis)
            assert actual.dtype == wanted.dtype and torch.equal(actual.cpu(), wanted), name
            assert actual.stride() == torch.empty_like(given).stride(), name


@dtypes
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_ties_edges_and_special_values(device, dtype, bits, signed):
    """And what the codes stand for is what fake_quantize gives."""
    lo, hi = oracles.bounds(bits, signed)
    for scale in (0.25, 0.1):
        x = oracles.awkward_values(scale, lo, hi, dtype).to(device)
        x, s = x[~x.isnan()], torch.tensor(scale, device=device)
        codes = mbq.quantize_codes(x, s, bits=bits, signed=signed)
        assert torch.equal(codes.cpu(), expected(x, s, bits=bits, signed=signed))
        values = mbq.fake_quantize(x, s, bits=bits, signed=signed, out_dtype=torch.float32)
        oracles.assert_same(codes.float() * s, values)


def test_channels_last_and_float64(device, backend):
    x = torch.randn(2, 5, 4, 3, device=device).to(memory_format=torch.channels_last)
    scale = torch.rand(5, device=device) + 0.1
    actual = mbq.quantize_codes(x, scale, bits=4, axis=1)
    assert actual.stride() == x.stride()
    assert torch.equal(actual.cpu(), expected(x, scale, bits=4, signed=True, axis=1))
    if device == "cpu" and backend != "triton":
        x = x.double() + 2.0**-40
        assert torch.equal(mbq.quantize_codes(x, scale, bits=4, axis=1),
                           expected(x, scale.double(), bits=4, signed=True, axis=1))


@dtypes
@pytest.mark.parametrize("bits, signed", [(8, True), (8, False), (1, True)])
@pytest.mark.parametrize("at", [0, 1500, 2999])
def test_nan(device, backend, dtype, bits, signed, at):
    """Raises on the CPU, by run and by column; the lowest code on CUDA and by Triton."""
    x, scale = torch.zeros(1000, 3, dtype=dtype), torch.ones(3, device=device)
    x.view(-1)[at] = torch.nan
    if device == "cuda" or backend == "triton":
        codes = mbq.quantize_codes(x.to(device), scale, bits=bits, signed=signed, axis=1)
        assert codes.view(-1)[at] == oracles.bounds(bits, signed)[0]
        return
    for given, s, axis in ((x, scale, 1), (x, scale[0], None)):
        with pytest.raises(RuntimeError, match="^quantize_codes: x must not hold NaN"):
            mbq.quantize_codes(given, s, bits=bits, signed=signed, axis=axis)


def test_no_gradient_flows(device):
    x = torch.randn(5, device=device, requires_grad=True)
    codes = mbq.quantize_codes(x, torch.ones(1, device=device), bits=4)
    assert codes.dtype == torch.int8 and not codes.requires_grad


ERRORS = [
    ({"x": torch.ones(4, 3, dtype=torch.int32)}, TypeError, "x must be float32.*got torch.int32"),
    ({"scale": torch.ones(4)}, ValueError, "scale must have 1 element without axis, got 4"),
    ({"scale": torch.tensor([-1.0])}, RuntimeError, "scale must be finite and > 0, got -1"),
    ({"offset": torch.tensor([torch.inf])}, RuntimeError, r"offset must be finite, got inf \(element 0\)"),
    ({"offset": torch.ones(4), "axis": 0}, ValueError, r"offset must have the shape of scale, \(1,\), got \(4,\)"),
    ({"axis": 2}, ValueError, r"axis must be in \[-2, 2\)"),
    ({"bits": 9}, ValueError, "bits must be between 1 and 8, got 9"),
    ({"bits": None}, TypeError, "bits must be an integer, got None"),
    ({"signed": 1}, TypeError, "signed must be True or False, got 1"),
]


@pytest.mark.parametrize("changes, error, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_errors(name, changes, error, message):
    arguments = {"x": torch.ones(4, 3), "scale": torch.ones(1), "bits": 4, **changes}
    with mbq.use_backend(name), pytest.raises(error, match="^quantize_codes: " + message):
        mbq.quantize_codes(**arguments)
