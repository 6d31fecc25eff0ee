"""fake_quantize_affine: torch's own fake-quantization bit for bit, and its gradients."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

RANGES = [(-128, 127), (0, 255), (-8, 7), (0, 1), (-32768, 32767)]
ranges = pytest.mark.parametrize("quant_min, quant_max", RANGES)


def make(shape, channels, quant_min, quant_max, device):
    x = torch.randn(shape, device=device) * (quant_max - quant_min) * 0.1
    scale = torch.rand(channels, device=device) * 0.3 + 0.05
    zero_point = torch.randint(quant_min, quant_max + 1, (channels,), device=device).float()
    return x, scale, zero_point


@ranges
@pytest.mark.parametrize("shape, axis", [((3000,), None), ((5, 700), 0), ((4, 5, 6), 1), ((3, 7, 40), 1)], ids=str)
def test_matches_torch(device, shape, axis, quant_min, quant_max):
    x, scale, zero_point = make(shape, 1 if axis is None else shape[axis], quant_min, quant_max, device)
    if axis is None:
        x[:1000] = (torch.arange(-500, 500, device=device) + 0.5) * scale  # ties
        x[1000:2000] = torch.nextafter(x[:1000], torch.full_like(x[:1000], 9e9))
    leaves = [t.clone().requires_grad_() for t in (x, scale, zero_point)]
    theirs = x.clone().requires_grad_()
    ours = mbq.fake_quantize_affine(*leaves, quant_min=quant_min, quant_max=quant_max, axis=axis, grad_factor=0.5)
    if axis is None:
        wanted = torch.fake_quantize_per_tensor_affine(theirs, scale, zero_point.int(), quant_min, quant_max)
        learned = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, quant_min, quant_max, 1.0)
    else:
        wanted = torch.fake_quantize_per_channel_affine(theirs, scale, zero_point.int(), axis, quant_min, quant_max)
        learned = torch._fake_quantize_learnable_per_channel_affine(
            x, scale, zero_point, axis, quant_min, quant_max, 1.0)
    oracles.assert_same(ours, wanted)
    oracles.assert_same(ours, learned)
    grad = torch.randn(shape, device=device)
    actual = torch.autograd.grad(ours, leaves, grad)
    oracles.assert_same(actual[0], torch.autograd.grad(wanted, theirs, grad)[0], "grad x")
    check_parameter_gradients(actual, ours, grad, leaves, axis, (quant_min, quant_max))


def check_parameter_gradients(actual, x_hat, grad, leaves, axis, limits):
    """Against the equations in float64. (torch's learnable backward rounds x / scale + zp: another code at ties.)"""
    x, scale, zero_point = (t.detach().cpu() for t in leaves)
    s, zp = (oracles.spread(t, x, axis) for t in (scale, zero_point))
    level = torch.round(x * (1 / s)) + zp
    clipped = (level < limits[0]) | (level > limits[1])
    g, x_hat = grad.cpu().double() * 0.5, x_hat.detach().cpu().double()
    to_scale = g * torch.where(clipped, level.clamp(*limits).double() - zp, (x_hat - x.double()) / s.double())
    to_zero_point = torch.where(clipped, -s.double() * g, 0)
    other = [d for d in range(x.dim()) if axis is None or d != axis]
    size = g.abs() * (s.abs() + zp.abs() + (limits[1] - limits[0]))
    for name, one, terms in (("scale", actual[1], to_scale), ("zero_point", actual[2], to_zero_point)):
        bound = 1e-6 * size.sum(dim=other).reshape(one.shape)
        oracles.assert_within(one, terms.sum(dim=other).reshape(one.shape), bound, f"grad {name}")


def test_hand_worked_gradients(device):
    """quant [0, 3], scale 1/2, zero point 1: codes of -1, -.5, .2, 1, 1.3, 2 are 0, 0, 1, 3, 3, 3; 4 clipped."""
    x = torch.tensor([-1.0, -0.5, 0.2, 1.0, 1.3, 2.0], device=device, requires_grad=True)
    scale = torch.tensor([0.5], device=device, requires_grad=True)
    zero_point = torch.tensor([1.0], device=device, requires_grad=True)
    out = mbq.fake_quantize_affine(x, scale, zero_point, quant_min=0, quant_max=3)
    assert out.tolist() == [-0.5, -0.5, 0.0, 1.0, 1.0, 1.0]
    out.backward(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], device=device))
    assert x.grad.tolist() == [0, 2, 4, 8, 0, 0]
    inside = 4 * (0.0 - 0.2) / 0.5  # the others inside are on the grid
    torch.testing.assert_close(scale.grad, torch.tensor([1 * -1.0 + inside + 16 * 2 + 32 * 2], device=device))
    assert zero_point.grad.tolist() == [-0.5 * (1 + 16 + 32)]


def test_mask_is_on_the_rounded_value(device):
    """At v = hi + 1/4 the code is still inside for the affine family; fake_quantize clips it."""
    x = torch.tensor([7.25], device=device, requires_grad=True)
    one = torch.ones(1, device=device)
    (affine,) = torch.autograd.grad(mbq.fake_quantize_affine(x, one, 0 * one, quant_min=-8, quant_max=7), x)
    (lsq,) = torch.autograd.grad(mbq.fake_quantize(x, one, bits=4), x)
    assert affine.item() == 1 and lsq.item() == 0


@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
def test_dtypes_special_values_and_formats(device, dtype):
    scale, zero_point = torch.tensor([0.25], device=device), torch.tensor([3.4], device=device)  # zp rounds to 3
    x = oracles.awkward_values(0.25, -9, 8, dtype).to(device)
    out = mbq.fake_quantize_affine(x, scale, zero_point, quant_min=-8, quant_max=7)
    code = (torch.round(x.float() * 4) + 3).clamp(-8, 7)
    oracles.assert_same(out, ((code - 3) * 0.25).to(dtype))
    strided = torch.randn(4, 6, 5, 2, device=device).to(dtype).to(memory_format=torch.channels_last)
    out = mbq.fake_quantize_affine(strided, torch.full((6,), 0.25, device=device), torch.zeros(6, device=device),
                                   quant_min=-8, quant_max=7, axis=1)
    assert out.stride() == strided.stride()
    oracles.assert_same(out, (torch.round(strided.float() * 4).clamp(-8, 7) * 0.25).to(dtype))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64], ids=str)
def test_integer_zero_point_is_a_constant(device, dtype):
    x, scale = torch.randn(9, device=device), torch.tensor([0.3], device=device)
    zero_point = torch.tensor([2], device=device, dtype=dtype)
    results = []
    for zp in (zero_point, zero_point.float()):
        leaves = [t.clone().requires_grad_() for t in (x, scale)]
        out = mbq.fake_quantize_affine(*leaves, zp, quant_min=0, quant_max=15)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_gradient_of_nan(device):
    x = torch.tensor([torch.nan], device=device, requires_grad=True)
    scale, zero_point = (torch.ones(1, device=device).requires_grad_() for _ in range(2))
    out = mbq.fake_quantize_affine(x, scale, zero_point, quant_min=0, quant_max=3)
    out.sum().backward()
    assert out.isnan().all() and x.grad.item() == 0 and scale.grad.isnan().all() and zero_point.grad.item() == 0


ERRORS = [
    ({"quant_min": 7, "quant_max": 7}, ValueError, "quant_min must be less than quant_max, got 7 and 7"),
    ({"quant_min": 0.0}, TypeError, r"quant_min must be an integer, got 0\.0"),
    ({"quant_max": 2**21}, ValueError, r"quant_max must be between -2\^20 and 2\^20, got 2097152"),
    ({"zero_point": torch.zeros(2)}, ValueError, "zero_point must have 1 element without axis, got 2"),
    ({"zero_point": "0"}, TypeError, "zero_point must be a tensor, got str"),
    ({"zero_point": 8}, ValueError, "zero_point must be between quant_min and quant_max, -8 and 7, got 8"),
    ({"zero_point": torch.tensor([-9])}, RuntimeError,
     r"zero_point must be between quant_min and quant_max, -8 and 7, got -9 \(element 0\)"),
    ({"zero_point": torch.tensor([torch.nan])}, RuntimeError, "zero_point must not be NaN"),
    ({"scale": torch.tensor([0.0])}, RuntimeError, "scale must be finite and > 0, got 0"),
    ({"grad_factor": None}, TypeError, "grad_factor must be a number, got None"),
    ({"x": torch.ones(3, dtype=torch.int32)}, TypeError, "x must be float32.*got torch.int32"),
    ({"axis": 5}, ValueError, r"axis must be in \[-2, 2\)"),
]


@pytest.mark.parametrize("changes, error, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend, changes, error, message):
    arguments = {"x": torch.ones(16, 8), "scale": torch.ones(1), "zero_point": torch.zeros(1),
                 "quant_min": -8, "quant_max": 7, **changes}
    with mbq.use_backend(backend), pytest.raises(error, match="^fake_quantize_affine: " + message):
        mbq.fake_quantize_affine(**arguments)
