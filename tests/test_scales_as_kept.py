"""Scales as people keep them: with the dimensions of x, as numbers, per group, with a factor of the tensor, narrow."""

import math

import oracles
import pytest
import torch

import mbq_kernels as mbq

X_SHAPE, SHAPES = (6, 4, 3, 5), [(6,), (6, 1, 1, 1)]


def fake(x, scale, **options):
    return mbq.fake_quantize(x, scale, bits=4, **options)


def multi(x, scale, **options):
    return torch.cat([y.flatten() for y in mbq.fake_quantize_multi(x, [scale, scale * 2], bits=(4, 2), **options)])


def corrected(x, scale, **options):
    return mbq.fake_quantize_corrected(x, scale, bits=4, **options)


def foreach(x, scale, **options):
    return mbq.fake_quantize_foreach([x], [[scale]], bits=(4,), **options)[0][0]


def double(x, scale, **options):
    return torch.cat([y.flatten() for y in mbq.double_round(x, scale, high_bits=6, bits=(4, 2), **options)])


def affine(x, scale, **options):
    return mbq.fake_quantize_affine(x, scale, 0, quant_min=-8, quant_max=7, **options)


def narrow(x, scale, **options):
    return mbq.fake_quantize(x, scale, bits=4, narrow=True, **options)


def codes(x, scale, **options):
    return mbq.quantize_codes(x, scale, bits=4, **options)


CALLS = {call.__name__: call for call in (fake, narrow, multi, foreach, corrected, double, affine)}
GROUPED = ("fake", "narrow", "multi", "double", "affine")
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
grouped = pytest.mark.parametrize("call", [CALLS[name] for name in GROUPED], ids=GROUPED)


def results(call, x, scale, grad=None, **options):
    """Return the result and the gradients of x and of the scale, of an upstream gradient."""
    leaves = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
    out = call(*leaves, **options)
    grad = torch.linspace(-1, 1, out.numel(), device=x.device).reshape(out.shape) if grad is None else grad
    return out, *torch.autograd.grad(out, leaves, grad)


@calls
def test_a_scale_with_the_dimensions_of_x_is_the_scale_of_its_channels(device, call):
    x, scale = torch.randn(X_SHAPE, device=device), torch.rand(6, device=device) * 0.3 + 0.1
    flat, kept = (results(call, x, scale.reshape(shape), axis=0) for shape in SHAPES)
    assert kept[2].shape == (6, 1, 1, 1)
    for one, other in zip(flat, kept, strict=True):
        oracles.assert_same(one, other.reshape(one.shape))
    assert torch.equal(codes(x, scale, axis=0), codes(x, scale.reshape(6, 1, 1, 1), axis=0))


@pytest.mark.parametrize("shape, axis", [((4, 1, 1), 1), ((1, 4, 1, 1), -3), ((5,), -1), ((1, 1, 5), -1)], ids=str)
def test_a_scale_broadcasts_along_its_axis(device, shape, axis):
    x, scale = torch.randn(X_SHAPE, device=device), torch.rand(shape, device=device) + 0.1
    flat, kept = results(fake, x, scale.flatten(), axis=axis), results(fake, x, scale, axis=axis)
    assert kept[2].shape == shape
    for one, other in zip(flat, kept, strict=True):
        oracles.assert_same(one, other.reshape(one.shape))


@calls
def test_a_number_is_a_constant(device, call):
    x = torch.randn(X_SHAPE, device=device, requires_grad=True)
    outs = [call(x, scale) for scale in (0.25, torch.tensor([0.25], device=device))]
    oracles.assert_same(*outs)
    oracles.assert_same(*(torch.autograd.grad(out, x, torch.ones_like(out))[0] for out in outs), "grad x")


def test_a_number_beside_a_tensor_has_its_shape(device):
    x, row = torch.randn(6, 50, device=device), torch.rand(6, device=device) + 0.1
    oracles.assert_same(mbq.fake_quantize(x, row, 0.1, bits=4, axis=0),
                        mbq.fake_quantize(x, row, torch.full_like(row, 0.1), bits=4, axis=0))
    oracles.assert_same(mbq.fake_quantize(x, 0.2, row, bits=4, axis=0),
                        mbq.fake_quantize(x, torch.full_like(row, 0.2), row, bits=4, axis=0))
    oracles.assert_same(mbq.fake_quantize_affine(x, row.reshape(6, 1), 3, quant_min=0, quant_max=7, axis=0),
                        mbq.fake_quantize_affine(x, row, torch.full_like(row, 3), quant_min=0, quant_max=7, axis=0))
    assert torch.equal(mbq.quantize_codes(x, row, 0.1, bits=4, axis=0),
                       mbq.quantize_codes(x, row, torch.full_like(row, 0.1), bits=4, axis=0))


@grouped
def test_a_factor_of_the_tensor(device, call):
    """Against 1 / sqrt(n hi) of a channel's n elements, which differ by the channels alone."""
    x, scale = torch.randn(X_SHAPE, device=device), torch.rand(6, device=device) * 0.3 + 0.1
    whole = results(call, x, scale, axis=0, grad_factor="tensor")[2]
    if call is affine:
        wanted = results(call, x, scale, axis=0)[2] / math.sqrt(x.numel() * 7)
    else:
        wanted = results(call, x, scale, axis=0)[2] / math.sqrt(6)
    torch.testing.assert_close(whole, wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_narrow_range_is_the_expression_written_out(device, bits):
    hi = 2 ** (bits - 1) - 1
    x = oracles.awkward_values(0.3, -hi - 1, hi, torch.float32)
    x, scale = x[x.isfinite() & (x.abs() < 1e30)].reshape(1, -1), torch.tensor([[0.3]])
    theirs = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
    position = torch.clamp(theirs[0] / theirs[1], -hi, hi)
    wanted = (position + (position.round() - position).detach()) * theirs[1]
    code = torch.round(torch.clamp(x / scale, -hi, hi))
    grad = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    out, grad_x, grad_scale = results(mbq.fake_quantize, x.to(device), scale.to(device), grad.to(device), axis=0,
                                      bits=bits, narrow=True, grad_factor=1.0)
    oracles.assert_same(out, code * scale)
    expected = torch.autograd.grad(wanted, theirs, grad)
    oracles.assert_same(grad_x, torch.where(expected[0] == 0, 0, grad), "grad x")
    oracles.assert_within(grad_scale, expected[1].double(), 1e-5 * grad.abs().sum() * hi, "grad scale")


@grouped
@pytest.mark.parametrize("shape, rows", [((6, 64), (6, 4)), ((2, 3, 64), (2, 3, 4)), ((2, 3, 64), (6, 4))], ids=str)
def test_groups_are_channels_of_a_view(device, call, shape, rows):
    x, scale = torch.randn(shape, device=device), torch.rand(rows, device=device) * 0.3 + 0.1
    one = results(call, x, scale, group_size=16)
    other = results(call, x.reshape(-1, 16), scale.flatten(), axis=0)
    assert one[2].shape == rows and one[0].shape == (other[0].shape if other[0].dim() == 1 else shape)
    for got, wanted in zip(one, other, strict=True):
        oracles.assert_same(got.flatten(), wanted.flatten())
    assert torch.equal(codes(x, scale, group_size=16),
                       codes(x.reshape(-1, 16), scale.flatten(), axis=0).reshape(shape))


def test_groups_of_a_sliced_tensor_with_offsets_units_and_floors(device):
    x, rows = torch.randn(6, 128, device=device)[:, ::2], torch.rand(4, 6, 4, device=device) * 0.3 + 0.1
    scale, offset, unit, floor = rows
    got = mbq.fake_quantize(x, scale, offset, bits=4, group_size=16, scale_unit=unit, scale_floor=floor)
    wanted = mbq.fake_quantize(x.reshape(24, 16), scale.flatten(), offset.flatten(), bits=4, axis=0,
                               scale_unit=unit.flatten(), scale_floor=floor.flatten())
    oracles.assert_same(got, wanted.reshape(6, 64))


@grouped
def test_compiles_to_one_graph(call):
    x, scale = torch.randn(6, 64), torch.rand(6, 4) * 0.3 + 0.1
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for one, other in zip(*(results(c, x, scale, group_size=16, grad_factor="tensor") for c in (call, compiled)),
                          strict=True):
        oracles.assert_same(one, other)
    oracles.assert_same(compiled(x, 0.25), call(x, 0.25))


ERRORS = [
    (fake, {"scale": torch.ones(16, 1, 1), "axis": 0}, ValueError,
     r"fake_quantize: scale must have shape \(16,\) or \(16, 1\) \(x has shape \(16, 8\), axis 0\), got \(16, 1, 1\)"),
    (fake, {"scale": torch.ones(1, 8), "axis": 0}, ValueError, "scale must have 1 or 16 elements .*, got 8"),
    (fake, {"group_size": 3}, ValueError,
     r"group_size must divide the last axis of x, which has shape \(16, 8\), got 3"),
    (fake, {"group_size": 0}, ValueError, "group_size must divide the last axis of x, .*, got 0"),
    (fake, {"group_size": 4.0}, TypeError, r"group_size must be an integer or None, got 4\.0"),
    (fake, {"group_size": 4, "axis": 0}, ValueError, "axis must be None with group_size, .*, got 0"),
    (affine, {"scale": torch.ones(32), "group_size": 4}, ValueError,
     r"fake_quantize_affine: scale must have an element per group, shape \(16, 2\), got shape \(32,\)"),
    (multi, {"scale": torch.ones(2, 16), "group_size": 4}, ValueError,
     r"scales\[0\] must have an element per group, shape \(16, 2\), got shape \(2, 16\)"),
    (narrow, {"offset": torch.zeros(1)}, ValueError, "narrow must be False with offset, got True"),
    (narrow, {"out_dtype": torch.bfloat16}, ValueError, "narrow must be False with another out_dtype, got True"),
    (narrow, {"signed": False}, ValueError, "narrow must be False where codes are unsigned or have 1 bit, got True"),
    (fake, {"narrow": 1}, TypeError, "narrow must be True or False, got 1"),
    (double, {"grad_factor": "channel"}, TypeError, "grad_factor must be a number, got 'channel'"),
    (fake, {"scale": 0.0}, RuntimeError, "scale must be finite and > 0, got 0"),
]


@pytest.mark.parametrize("call, changes, error, message", ERRORS, ids=[f"{e[0].__name__} {e[3][:50]}" for e in ERRORS])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend, call, changes, error, message):
    with mbq.use_backend(backend), pytest.raises(error, match=message):
        call(**{"x": torch.ones(16, 8), "scale": torch.ones(1), **changes})
