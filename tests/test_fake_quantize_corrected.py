"""fake_quantize_corrected: codes exact, moments those of the reference, gradients of a straight-through oracle."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

BITS = (8, 4, 1, 2)
LEVELS = len(BITS)
SHAPES = [((7,), None), ((1, 1), 0), ((3, 1031), 0), ((16, 5, 3, 3), 0), ((5, 6, 7), 1), ((40, 8), -1),
          ((3, 2051), None)]
shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def make(shape, axis, dtype, device, levels=LEVELS):
    count = 1 if axis is None else shape[axis]
    scales = torch.rand(levels, count, device=device) * 0.5 + 0.3
    return (torch.randn(shape) * 2).to(device, dtype), scales, torch.randn(levels, count, device=device) * 0.3


def oracle(x, scale, offset, reference, axis, **quantizer):
    """(y, factor in y's shape): codes by float32 division, the rest in float64"""
    code = torch.from_numpy(oracles.codes(oracles.positions(x, scale, offset, axis), **quantizer)).double()
    x_hat = code * oracles.spread(scale.cpu().double(), x, axis)
    x_hat = x_hat if offset is None else x_hat + oracles.spread(offset.cpu().double(), x, axis)
    ref = (x if reference is None else reference).cpu().double()
    dims = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    mean = lambda t: t.mean(dims, keepdim=True) if dims else t  # noqa: E731
    one = x.numel() == (1 if axis is None else x.shape[axis])
    sd = lambda t: torch.zeros_like(t) if one else t.std(dims, keepdim=True)  # noqa: E731
    constant = (code == (code.amax(dims, keepdim=True) if dims else code)).all(dim=tuple(dims), keepdim=True) \
        if dims else torch.ones_like(code, dtype=torch.bool)
    factor = torch.where(constant, 0, sd(ref) / (sd(x_hat) + 1e-8))
    return factor * (x_hat - mean(x_hat)) + mean(ref), factor.expand(x.shape)


@shapes
@dtypes
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("own_reference", [True, False])
def test_values(device, backend, shape, axis, dtype, signed, own_reference):
    x, scales, offsets = make(shape, axis, dtype, device)
    interpreted = backend == "triton" and device == "cpu"
    if interpreted and x.numel() > 3000 and dtype != torch.float32:
        pytest.skip("the interpreter is slow: short floats on small tensors alone")
    reference = None if own_reference else torch.randn(shape, device=device) * 3 + 17
    for given in (None, offsets):
        outs = mbq.fake_quantize_corrected(x, scales, given, reference=reference, bits=BITS, signed=signed, axis=axis,
                                           correct_axis=axis)
        assert isinstance(outs, tuple) and len(outs) == len(BITS)
        for k, b in enumerate(BITS):
            offset = None if given is None else given[k]
            expected, factor = oracle(x, scales[k], offset, reference, axis, bits=b, signed=signed)
            reach = factor * (scales[k].max().item() * 2**b + 1) + expected.abs().max()
            oracles.assert_within(outs[k], expected, torch.finfo(dtype).eps * expected.abs() + 4e-7 * reach, f"y[{k}]")
            if not interpreted or k == 2:
                single = mbq.fake_quantize_corrected(x, scales[k], offset, reference=reference, bits=b, signed=signed,
                                                     axis=axis, correct_axis=axis)
                assert torch.equal(single, outs[k])


@shapes
@dtypes
def test_gradients(device, shape, axis, dtype):
    """Those of fake_quantize for factor * grad."""
    x, scales, offsets = make(shape, axis, dtype, device)
    grads = [torch.randn(shape).to(device, dtype) for _ in BITS]
    leaves = [t.requires_grad_() for t in (x, scales, offsets)]
    outs = mbq.fake_quantize_corrected(*leaves, bits=BITS, axis=axis, correct_axis=axis)
    actual = torch.autograd.grad(outs, leaves, grads)
    total, size = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for k, b in enumerate(BITS):
        _, factor = oracle(x.detach(), scales[k].detach(), offsets[k].detach(), None, axis, bits=b, signed=True)
        scaled = grads[k].cpu().double() * factor
        one = oracles.gradients(scaled, x, scales[k], offsets[k], bits=b, axis=axis)
        total, size = total + one[0], size + one[0].abs()
        share = 1 / (x.numel() / scales.shape[1] * oracles.bounds(b, True)[1]) ** 0.5
        bound = 4 * oracles.sum_tolerance(scaled, x, scales[k], offsets[k], axis, share)
        oracles.assert_within(actual[1][k], one[1], bound, f"grad scale {k}")
        oracles.assert_within(actual[2][k], one[2], bound, f"grad offset {k}")
    oracles.assert_within(actual[0], total, torch.finfo(dtype).eps * total.abs() + 1e-6 * size, "grad x")


def test_one_scale_for_all_corrected_channels(device):
    """axis None beside correct_axis 0: the scale's gradient is summed over channels with LSQ's factor for all of x."""
    x = torch.randn(6, 45, device=device)
    one, each = (torch.full((n,), 0.4, device=device).requires_grad_() for n in (1, 6))
    y, wanted = mbq.fake_quantize_corrected(x, one, bits=3), mbq.fake_quantize_corrected(x, each, bits=3, axis=0)
    assert torch.equal(y, wanted)
    grad = torch.randn_like(x)
    to_one, to_each = torch.autograd.grad(y, one, grad)[0], torch.autograd.grad(wanted, each, grad)[0]
    torch.testing.assert_close(to_one, to_each.sum().reshape(1) / 6**0.5)
    fixed = torch.autograd.grad(mbq.fake_quantize_corrected(x, one, bits=3, grad_factor=0.5), one, grad)[0]
    torch.testing.assert_close(fixed, to_each.sum().reshape(1) * 0.5 * (45 * 3) ** 0.5)


@dtypes
@pytest.mark.parametrize("signed", [True, False])
def test_what_a_store_gives_back(device, dtype, signed):
    """codes * scale' + offset', with the codes of quantize_codes, are the results bit for bit."""
    x, scales, offsets = make((5, 301), 0, dtype, device)
    x[3] = 0.25  # all codes one value
    outs = mbq.fake_quantize_corrected(x, scales, offsets, bits=BITS, signed=signed, axis=0, out_dtype=torch.float32)
    new_scales, new_offsets = mbq.fold_correction(x, scales, offsets, bits=BITS, signed=signed, axis=0)
    assert new_scales.shape == new_offsets.shape == (4, 5) and (new_scales > 0).all()
    for k, b in enumerate(BITS):
        codes = mbq.quantize_codes(x, scales[k], offsets[k], bits=b, signed=signed, axis=0).float()
        oracles.assert_same(outs[k], codes * new_scales[k, :, None] + new_offsets[k, :, None])
        single = mbq.fold_correction(x, scales[k], offsets[k], bits=b, signed=signed, axis=0)
        assert torch.equal(single[0], new_scales[k]) and torch.equal(single[1], new_offsets[k])


def test_moments_are_those_of_the_reference(device):
    w = torch.randn(8, 4, 3, 3, device=device) * torch.rand(8, 1, 1, 1, device=device) + 0.1
    for y in mbq.fake_quantize_corrected(w, torch.full((4,), 0.2, device=device), bits=BITS):
        for moment in (torch.mean, torch.std):
            torch.testing.assert_close(moment(y, dim=(1, 2, 3)), moment(w, dim=(1, 2, 3)), rtol=2e-6, atol=1e-6)


def test_equals_the_composed_ops(device):
    w, scale = torch.randn(6, 50, device=device), torch.rand(6, device=device) * 0.5 + 0.2
    with mbq.use_backend("reference"):
        composed = mbq.correct_weight_bias(mbq.fake_quantize(w, scale, bits=4, axis=0), w)
    torch.testing.assert_close(mbq.fake_quantize_corrected(w, scale, bits=4, axis=0), composed)


@pytest.mark.parametrize("value", [0.0, 0.3, -5.0])
def test_constant_codes(device, value):
    x = torch.full((2, 700), value, device=device).requires_grad_()
    reference = torch.randn(2, 700, device=device)
    y = mbq.fake_quantize_corrected(x, torch.full((2,), 0.25, device=device), reference=reference, bits=4, axis=0)
    torch.testing.assert_close(y, reference.mean(1, keepdim=True).expand(2, 700), atol=3e-7, rtol=0)
    assert torch.autograd.grad(y.sum(), x)[0].abs().max() == 0


def test_mean_far_from_zero(device):
    """The deviation of weights around 1000 does not cancel."""
    x = torch.randn(3, 5000, device=device) + 1000
    y = mbq.fake_quantize_corrected(x, torch.full((3,), 0.5, device=device), torch.full((3,), 1000.0, device=device),
                                    bits=4, axis=0)
    torch.testing.assert_close(y.double().std(1), x.double().std(1), rtol=2e-5, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_channel(device, bad):
    x, scales, _ = make((3, 40), 0, torch.float32, device, levels=1)
    x[1, 5] = bad
    y = mbq.fake_quantize_corrected(x, scales[0], bits=4, axis=0)
    assert y.isnan().any(1).tolist() == [False, True, False]


def test_memory_formats_and_empty(device):
    for x in (torch.randn(3, 5, 4, 6).to(memory_format=torch.channels_last), torch.randn(3, 5, 8, 6)[:, :, ::2],
              torch.randn(70, 5, 3).permute(0, 2, 1)):
        x, axis = x.to(device), 1
        scales = torch.rand(2, x.shape[1], device=device) + 0.2
        outs = mbq.fake_quantize_corrected(x, scales, bits=(4, 2), axis=axis, correct_axis=axis)
        expected = mbq.fake_quantize_corrected(x.contiguous(), scales, bits=(4, 2), axis=axis, correct_axis=axis)
        for out, want in zip(outs, expected, strict=True):
            assert out.stride() == torch.empty_like(x).stride()
            torch.testing.assert_close(out, want)
    for shape in ((0, 4), (4, 0)):
        x = torch.empty(shape, device=device).requires_grad_()
        y = mbq.fake_quantize_corrected(x, torch.ones(1, device=device), bits=4)
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def test_float64_and_out_dtype():
    x = torch.randn(4, 50, dtype=torch.float64)
    y = mbq.fake_quantize_corrected(x, torch.rand(4) + 0.2, bits=4, axis=0)
    torch.testing.assert_close(y.std(1), x.std(1), rtol=1e-7, atol=0)
    half = mbq.fake_quantize_corrected(x.float(), torch.ones(1), bits=4, out_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


X, S = torch.randn(3, 4), torch.ones(3)
ERRORS = [
    ({"axis": 0, "correct_axis": 1}, ValueError, "axis must be None or correct_axis, 1, got 0"),
    ({"correct_axis": 2}, ValueError, r"correct_axis must be in \[-2, 2\) for x of shape \(3, 4\), got 2"),
    ({"correct_axis": 0.0}, TypeError, "correct_axis must be an integer or None, got 0.0"),
    ({"scale": S}, ValueError, r"scale must have 1 element without axis, got 3 \(shape \(3,\); pass axis for one per "
                               r"channel\)"),
    ({"reference": X[:2]}, ValueError, r"reference must have the shape of x, \(3, 4\), got \(2, 4\)"),
    ({"reference": X.double()}, TypeError, "reference must be float64 exactly when x is, got torch.float64 beside "
                                           "torch.float32"),
    ({"bits": 9}, ValueError, "bits must be between 1 and 8, got 9"),
    ({"bits": (4, 0), "scale": torch.ones(2)}, ValueError, "bits must be between 1 and 8, got 0"),
    ({"bits": (4, 2), "scale": S}, ValueError, r"scales must have one entry per bit-width \(2\), got 3"),
    ({"offset": S, "axis": 0}, ValueError, r"offset must have the shape of scale, \(1, 1\), got \(1, 3\)"),
    ({"grad_factor": "x"}, TypeError, "grad_factor must be a number, got 'x'"),
    ({"out_dtype": torch.int8}, TypeError, "out_dtype must be float32, bfloat16, float16 or float64, got torch.int8"),
]


@pytest.mark.parametrize("options, error, message", ERRORS, ids=[row[2][:30] for row in ERRORS])
def test_errors(options, error, message):
    given = {"x": X, "scale": torch.ones(1), "bits": 4, **options}
    with pytest.raises(error, match=f"^fake_quantize_corrected: {message}$"):
        mbq.fake_quantize_corrected(given.pop("x"), given.pop("scale"), **given)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_are_looked_at_on_the_cpu(device, backend, scale):
    if device == "cuda" or backend == "triton":
        pytest.skip("on CUDA values are not looked at")
    with pytest.raises(RuntimeError, match="^fake_quantize_corrected: scale must be finite and > 0, got "):
        mbq.fake_quantize_corrected(X, torch.tensor([scale]), bits=4)
