"""What every quantizer with a learned scale computes at max(scale * scale_unit, scale_floor), over backends."""

import numpy as np
import oracles
import pytest
import test_double_round
import torch

import mbq_kernels as mbq

SCALES = {"below": 0.1, "at": 0.3, "above": 0.7, "zero": 0.0, "negative": -0.4, "far below": -1e30}
FLOOR = 0.3
WALKS = [((6, 67), 0), ((67, 6), 1), ((3, 6, 5, 2), 1)]
walks = pytest.mark.parametrize("shape, axis", WALKS, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def make(shape, axis, dtype, device):
    """x, a scale of every kind, its floor"""
    scale = torch.tensor(list(SCALES.values()), device=device)
    return (torch.randn(shape) * 3).to(device, dtype), scale, torch.full_like(scale, FLOOR)


def raised(scale, floor):
    """The scale to compute with, by NumPy"""
    return torch.from_numpy(np.fmax(scale.detach().cpu().numpy(), floor.cpu().numpy())).to(scale.device)


def single(x, scale, floor, axis=0, unit=None):
    return mbq.fake_quantize(x, scale, bits=4, axis=axis, scale_unit=unit, scale_floor=floor),


def twice(parameter, factor=1):
    """Rows of two bit-widths"""
    return None if parameter is None else torch.stack([parameter, parameter * factor])


def multi(x, scale, floor, axis=0, unit=None):
    return mbq.fake_quantize_multi(x, twice(scale, 2), bits=(4, 2), axis=axis, scale_units=twice(unit),
                                   scale_floors=twice(floor, 2))


def foreach(x, scale, floor, axis=0, unit=None):
    floors = None if floor is None else [[floor, floor * 2], twice(floor)]
    units = None if unit is None else [[unit, unit], twice(unit)]
    rows = mbq.fake_quantize_foreach([x, x * 4], [[scale, scale * 2], twice(scale)], bits=(4, 2), axis=axis,
                                     scale_units=units, scale_floors=floors)
    return [out for row in rows for out in row]


def double(x, scale, floor, axis=0, unit=None):
    return mbq.double_round(x, scale, bits=(6, 3), axis=axis, scale_unit=unit, scale_floor=floor)


def corrected(x, scale, floor, axis=0, unit=None):
    return mbq.fake_quantize_corrected(x, scale, bits=4, axis=axis, correct_axis=axis or 0, scale_unit=unit,
                                       scale_floor=floor),


def corrected_twice(x, scale, floor, axis=0, unit=None):
    floors, units = None if floor is None else [floor, floor * 2], None if unit is None else [unit, unit]
    return mbq.fake_quantize_corrected(x, [scale, scale * 2], bits=(4, 2), axis=axis, correct_axis=axis or 0,
                                       scale_unit=units, scale_floor=floors)


OPS = {"fake_quantize": single, "fake_quantize_multi": multi, "fake_quantize_foreach": foreach, "double_round": double,
       "fake_quantize_corrected": corrected, "fake_quantize_corrected-two": corrected_twice}
every_op = pytest.mark.parametrize("op, call", [
    pytest.param(name.removesuffix("-two"), call, id=name) for name, call in OPS.items()])


@walks
@dtypes
@pytest.mark.parametrize("bits, signed", [(8, True), (3, False), (1, True)])
@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "none"])
def test_fake_quantize_against_the_oracle(device, shape, axis, dtype, bits, signed, with_offset):
    x, scale, floor = make(shape, axis, dtype, device)
    offset = torch.randn(6, device=device) if with_offset else None
    leaves = [t.requires_grad_() for t in (x, scale, offset) if t is not None]
    out = mbq.fake_quantize(x, scale, offset, bits=bits, signed=signed, axis=axis, scale_floor=floor)
    options = {"bits": bits, "signed": signed, "axis": axis}
    oracles.assert_same(out, oracles.fake_quantize(x, raised(scale, floor), offset, **options))
    grad = torch.randn(shape).to(device, dtype)
    actual = torch.autograd.grad(out, leaves, grad)
    expected = oracles.gradients(grad, x, raised(scale, floor), offset, **options)
    oracles.assert_same(actual[0], expected[0].to(dtype), "grad x")
    factor = 1 / (x.numel() / 6 * oracles.bounds(bits, signed)[1]) ** 0.5
    bound = oracles.sum_tolerance(grad, x, raised(scale, floor), offset, axis, factor)
    for one, other, what in zip(actual[1:], expected[1:], ("grad scale", "grad offset"), strict=False):
        oracles.assert_within(one, other, bound, what)


@pytest.mark.parametrize("value", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_one_scale_for_all(device, value, shape):
    x, scale = torch.randn(3, 41, device=device), torch.full(shape, value, device=device).requires_grad_()
    floor = torch.tensor([FLOOR], device=device, dtype=torch.float64)  # of another shape and dtype
    out = mbq.fake_quantize(x, scale, bits=4, scale_floor=floor)
    effective = raised(scale, floor).float()
    oracles.assert_same(out, oracles.fake_quantize(x, effective, bits=4))
    grad = torch.randn(3, 41, device=device)
    actual, (_, expected, _) = torch.autograd.grad(out, scale, grad)[0], oracles.gradients(grad, x, effective, bits=4)
    assert actual.shape == shape
    oracles.assert_within(actual, expected.reshape(shape), 1e-5, "grad scale")


@walks
@dtypes
def test_double_round_against_the_oracle(device, shape, axis, dtype):
    x, scale, floor = make(shape, axis, dtype, device)
    scale, floor = scale / 8, floor / 8
    for b in (8, 4, 2):
        leaves = [t.clone().requires_grad_() for t in (x, scale)]
        out = mbq.double_round(*leaves, bits=b, axis=axis, scale_floor=floor)
        oracles.assert_same(out, test_double_round.oracle(x, raised(scale, floor), bits=b, axis=axis))
        grad = torch.randn(shape).to(device, dtype)
        actual = torch.autograd.grad(out, leaves, grad)
        expected = test_double_round.oracle_gradients(grad, x, raised(scale, floor), bits=b, axis=axis)
        oracles.assert_same(actual[0], expected[0].to(dtype), "grad x")
        factor = 1 / (x.numel() / 6 * oracles.bounds(b, True)[1]) ** 0.5
        bound = oracles.sum_tolerance(grad, x, raised(scale, floor), None, axis, factor)
        oracles.assert_within(actual[1], expected[1], bound, "grad scale")


@every_op
@walks
def test_is_the_op_at_the_raised_scale(device, call, shape, axis):
    """Bit for bit, all gradients included."""
    x, scale, floor = make(shape, axis, torch.float32, device)
    results = []
    for s, f in ((scale, floor), (raised(scale, floor), None)):
        leaves = [t.detach().clone().requires_grad_() for t in (x, s)]
        outs = call(*leaves, f, axis)
        results.append((*outs, *torch.autograd.grad(sum((out * out.detach()).sum() for out in outs), leaves)))
    for one, other in zip(*results, strict=True):
        oracles.assert_same(one, other)


@every_op
@pytest.mark.parametrize("walk, dtype, floored", [
    (0, torch.float32, True), (1, torch.float32, False), (2, torch.bfloat16, True),
    (0, torch.bfloat16, False)], ids=str)
def test_units_are_the_op_at_the_product(device, call, walk, dtype, floored):
    """Bit for bit; the gradient of the scale is that of the product over the unit, rounded once."""
    shape, axis = WALKS[walk]
    x, scale, floor = make(shape, axis, dtype, device)
    unit = torch.rand(6, device=device) * 0.3 + 0.2
    if floored:
        effective = raised(scale * unit, floor := floor / 8)
        assert 3 <= (effective == floor).sum() <= 5
    else:
        scale, floor = scale.abs().clamp(min=0.05, max=9), None
        effective = scale * unit
    leaves, others = ([t.detach().clone().requires_grad_() for t in (x, s)] for s in (scale, effective))
    for out, wanted in zip(call(*leaves, floor, axis, unit), call(*others, None, axis), strict=True):
        oracles.assert_same(out, wanted)
        grad = torch.randn(shape).to(device, dtype)
        actual, expected = (torch.autograd.grad(o, t, grad, retain_graph=True)
                            for o, t in ((out, leaves), (wanted, others)))
        oracles.assert_same(actual[0], expected[0], "grad x")
        exact = expected[1].double() / unit.double()
        torch.testing.assert_close(actual[1].double(), exact, rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("value", [0.2, -3.0])
@pytest.mark.parametrize("name", ["fake_quantize", "double_round", "fake_quantize_corrected"])
@pytest.mark.parametrize("floor", [0.06, None])
def test_one_unit_for_all(device, name, value, floor):
    x, scale = torch.randn(3, 41, device=device), torch.full((), abs(value) if floor is None else value, device=device)
    unit = torch.full((1,), 0.25, device=device, dtype=torch.float64)  # of another shape and dtype
    floor = floor and torch.full((1, 1), floor, device=device)
    effective = scale * 0.25 if floor is None else raised(scale * 0.25, floor).reshape(())
    found = []
    for s, f, u in ((scale, floor, unit), (effective, None, None)):
        outs = OPS[name](x, leaf := s.detach().clone().requires_grad_(), f, None, u)
        loss = sum((out * torch.linspace(-1, 2, 41, device=device)).sum() for out in outs)
        found.append((*outs, torch.autograd.grad(loss, leaf)[0]))
    for one, other in zip(found[0][:-1], found[1][:-1], strict=True):
        oracles.assert_same(one, other)
    torch.testing.assert_close(found[0][-1], found[1][-1] * 4, rtol=1e-6, atol=1e-6)
    assert found[0][-1].shape == ()


@every_op
def test_a_floor_below_all_scales_changes_nothing(device, call):
    x, scale = torch.randn(4, 33, device=device), torch.rand(4, device=device) + 0.1
    for one, other in zip(call(x, scale, scale * 0.99), call(x, scale, None), strict=True):
        oracles.assert_same(one, other)
    for one, other in zip(call(x, scale, None, 0, torch.ones_like(scale)), call(x, scale, None), strict=True):
        oracles.assert_same(one, other)


@pytest.mark.parametrize("call", [single, multi, foreach, double])
@pytest.mark.parametrize("start", [-0.5, 0.0])
def test_a_dead_scale_comes_back(device, call, start):
    """The error falls where the step grows: that is the sign of the gradient, and steps along it leave the floor.

    Not of the corrected ops: the correction undoes what a step too small does.
    """
    x, scale = torch.randn(2, 300, device=device), torch.full((2,), start, device=device).requires_grad_()
    floor = torch.full((2,), 0.002, device=device)
    while (scale <= floor).all():
        loss = sum((out - x).square().sum() for out in call(x, scale, floor)[:2])
        (grad,) = torch.autograd.grad(loss, scale)
        assert (grad < 0).all() and grad.isfinite().all()
        with torch.no_grad():
            scale -= 0.3 * grad.sign()  # two steps from -0.5
    assert (scale > floor).all()


def test_fold_correction_is_of_the_raised_scale(device):
    x, scale, floor = make((6, 67), 0, torch.float32, device)
    x[1] = 0.25  # all codes one value: scale' is the scale that was computed with
    for unit in (None, torch.rand(6, device=device) + 0.5):
        new_scale, new_offset = mbq.fold_correction(x, scale, bits=4, axis=0, scale_unit=unit, scale_floor=floor)
        y = mbq.fake_quantize_corrected(x, scale, bits=4, axis=0, scale_unit=unit, scale_floor=floor)
        effective = raised(scale if unit is None else scale * unit, floor)
        codes = mbq.quantize_codes(x, effective, bits=4, axis=0).float()
        oracles.assert_same(y, codes * new_scale[:, None] + new_offset[:, None])
