"""scale_floor: what every quantizer with a learned scale computes at max(scale, floor), over backends."""

import numpy as np
import oracles
import pytest
import test_double_round
import torch
from torch._dynamo.testing import CompileCounterWithBackend

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


def single(x, scale, floor, axis=0):
    return mbq.fake_quantize(x, scale, bits=4, axis=axis, scale_floor=floor),


def multi(x, scale, floor, axis=0):
    scales = torch.stack([scale, scale * 2])
    return mbq.fake_quantize_multi(x, scales, bits=(4, 2), axis=axis,
                                   scale_floors=None if floor is None else torch.stack([floor, floor * 2]))


def foreach(x, scale, floor, axis=0):
    floors = None if floor is None else [[floor, floor * 2], torch.stack([floor, floor])]
    rows = mbq.fake_quantize_foreach([x, x * 4], [[scale, scale * 2], torch.stack([scale, scale])], bits=(4, 2),
                                     axis=axis, scale_floors=floors)
    return [out for row in rows for out in row]


def double(x, scale, floor, axis=0):
    return mbq.double_round(x, scale, bits=(6, 3), axis=axis, scale_floor=floor)


def corrected(x, scale, floor, axis=0):
    return mbq.fake_quantize_corrected(x, scale, bits=4, axis=axis, correct_axis=axis or 0, scale_floor=floor),


def corrected_twice(x, scale, floor, axis=0):
    floors = None if floor is None else [floor, floor * 2]
    return mbq.fake_quantize_corrected(x, [scale, scale * 2], bits=(4, 2), axis=axis, correct_axis=axis or 0,
                                       scale_floor=floors)


OPS = {"fake_quantize": single, "fake_quantize_multi": multi, "fake_quantize_foreach": foreach, "double_round": double,
       "fake_quantize_corrected": corrected, "fake_quantize_corrected-two": corrected_twice}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


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
def test_is_the_op_at_the_raised_scale(device, op, shape, axis):
    """Bit for bit, all gradients included."""
    x, scale, floor = make(shape, axis, torch.float32, device)
    results = []
    for s, f in ((scale, floor), (raised(scale, floor), None)):
        leaves = [t.detach().clone().requires_grad_() for t in (x, s)]
        outs = op(*leaves, f, axis)
        results.append((*outs, *torch.autograd.grad(sum((out * out.detach()).sum() for out in outs), leaves)))
    for one, other in zip(*results, strict=True):
        oracles.assert_same(one, other)


@every_op
def test_a_floor_below_all_scales_changes_nothing(device, op):
    x, scale = torch.randn(4, 33, device=device), torch.rand(4, device=device) + 0.1
    for one, other in zip(op(x, scale, scale * 0.99), op(x, scale, None), strict=True):
        oracles.assert_same(one, other)


@every_op
@pytest.mark.parametrize("start", [-0.5, 0.0])
def test_a_dead_scale_comes_back(device, op, start):
    """The error falls where the step grows: that is the sign of the gradient, and steps along it leave the floor."""
    if op in (corrected, corrected_twice):  # the correction undoes what a step too small does
        op = single
    x, scale = torch.randn(2, 300, device=device), torch.full((2,), start, device=device).requires_grad_()
    floor = torch.full((2,), 0.002, device=device)
    while (scale <= floor).all():
        loss = sum((out - x).square().sum() for out in op(x, scale, floor)[:2])
        (grad,) = torch.autograd.grad(loss, scale)
        assert (grad < 0).all() and grad.isfinite().all()
        with torch.no_grad():
            scale -= 0.3 * grad.sign()  # two steps from -0.5
    assert (scale > floor).all()


@every_op
def test_a_floor_is_a_constant(device, op):
    x, scale = torch.randn(3, 20, device=device), torch.full((3,), -1.0, device=device).requires_grad_()
    floor = torch.full((3,), 0.2, device=device).requires_grad_()
    loss = sum(out.square().sum() for out in op(x, scale, floor))
    to_scale, to_floor = torch.autograd.grad(loss, (scale, floor), allow_unused=True)
    assert to_floor is None and (to_scale != 0).all()
    assert not any(out.requires_grad for out in op(x, scale.detach(), floor))


def test_no_copy_of_the_floor_is_saved():
    x, scale, floor = make((6, 40), 0, torch.float32, "cpu")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        mbq.fake_quantize(x, scale.requires_grad_(), bits=4, axis=0, scale_floor=floor)
        mbq.double_round(x, scale, bits=4, axis=0, scale_floor=floor)
    assert sorted(saved) == sorted(t.data_ptr() for t in (x, scale, floor) * 2)


def test_float64_and_parameters_of_other_dtypes(device, backend):
    if device == "cuda" or backend == "triton":
        pytest.skip("float64 is for the CPU")
    x, scale, floor = make((6, 40), 0, torch.float64, device)
    out = mbq.fake_quantize(x, scale.bfloat16(), bits=5, axis=0, scale_floor=floor.half())
    effective = raised(scale.bfloat16().double(), floor.half().double())
    oracles.assert_same(out, oracles.fake_quantize(x, effective, bits=5, axis=0))


def test_fold_correction_is_of_the_raised_scale(device):
    x, scale, floor = make((6, 67), 0, torch.float32, device)
    x[1] = 0.25  # all codes one value: scale' is the scale that was computed with
    new_scale, new_offset = mbq.fold_correction(x, scale, bits=4, axis=0, scale_floor=floor)
    y = mbq.fake_quantize_corrected(x, scale, bits=4, axis=0, scale_floor=floor)
    codes = mbq.quantize_codes(x, raised(scale, floor), bits=4, axis=0).float()
    oracles.assert_same(y, codes * new_scale[:, None] + new_offset[:, None])


VALUES = [(1, torch.nan, FLOOR, "scale must be finite, got nan"),
          (0, torch.inf, FLOOR, "scale must be finite, got inf"),
          (1, -torch.inf, FLOOR, "scale must be finite, got -inf"),
          (1, 0.5, 0.0, "scale_floor must be finite and > 0, got 0"),
          (0, -0.5, -0.25, r"scale_floor must be finite and > 0, got -0\.25"),
          (1, 0.5, torch.nan, "scale_floor must be finite and > 0, got nan"),
          (1, 0.5, torch.inf, "scale_floor must be finite and > 0, got inf")]


@every_op
@pytest.mark.parametrize("at, scale, floor, message", VALUES, ids=[f"{v[1]} over {v[2]}" for v in VALUES])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_values_that_raise(backend, op, at, scale, floor, message):
    scales, floors = torch.full((3,), -1.0), torch.full((3,), FLOOR)
    scales[at], floors[at] = scale, floor
    message = rf"^\w+: {message} \(element {at}(, tensor 0)?\)$"
    with mbq.use_backend(backend), pytest.raises(RuntimeError, match=message):
        op(torch.ones(3, 5), scales, floors)


@every_op
@pytest.mark.parametrize("floor, error, message", [
    (torch.ones(4), ValueError, r"must have 1 or 3 elements .*, got 4"),
    (torch.ones(1), ValueError, r"must have the shape of scales?(\[0\])?, \(.*3,?\), got \(.*1,?\)"),
    (torch.ones(3, dtype=torch.int32), TypeError, "must be float32, bfloat16, float16 or float64, got torch.int32"),
    (torch.ones(3, device="meta"), ValueError, "must be on x's device cpu, got meta"),
], ids=["elements", "one", "dtype", "device"])
def test_what_is_no_floor(op, floor, error, message):
    with pytest.raises(error, match=r"^(fake_quantize|double_round)\w*: scale_floors?(\[0\])*(\[0\])? " + message):
        op(torch.ones(3, 5), torch.ones(3), floor)
    with pytest.raises(TypeError, match=r"scale_floors? must be a tensor( or a sequence of tensors)?, got float"):
        single(torch.ones(3, 5), torch.ones(3), 0.1)


def everything(x, scale, floor, bits=4):
    """All of the ops, the gradient of each its own"""
    outs = [mbq.fake_quantize(x, scale, bits=bits, axis=0, scale_floor=floor),
            *mbq.fake_quantize_multi(x, [scale, scale * 2], bits=[bits, 2], axis=0, scale_floors=[floor, floor]),
            *mbq.fake_quantize_foreach([x], [[scale]], bits=[bits], axis=0, scale_floors=[[floor]])[0],
            *mbq.fake_quantize_foreach([x], [[scale]], [[x[:, 0]]], bits=[bits], axis=0, scale_floors=[[floor]])[0],
            mbq.double_round(x, scale, bits=bits // 2 + 2, axis=0, scale_floor=floor),
            mbq.fake_quantize_corrected(x, scale, bits=bits, axis=0, scale_floor=floor)]
    return torch.stack([out * out.detach() for out in outs])


def test_compile(device):
    """In one graph, with bits at run time: two compiles for all bit-widths."""
    x, scale, floor = make((6, 33), 0, torch.float32, device)
    leaves = [t.requires_grad_() for t in (x, scale)]
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for f in (everything, compiled):
        out = f(*leaves, floor)
        grads = torch.autograd.grad(out.sum(), leaves)
        expected = (out, *grads) if f is everything else expected
    for one, other in zip((out, *grads), expected, strict=True):
        oracles.assert_same(one, other)
    counter = CompileCounterWithBackend("eager")
    counted = torch.compile(everything, fullgraph=True, backend=counter)
    for bits in range(1, 9):
        oracles.assert_same(counted(x.detach(), scale.detach(), floor, bits), everything(x, scale, floor, bits))
    assert counter.frame_count <= 2


@every_op
def test_torch_func(device, op):
    x, scale, floor = make((6, 17), 0, torch.float32, device)
    loss = lambda *tensors: sum((out * out).sum() for out in op(*tensors))  # noqa: E731
    rows = torch.stack([floor, floor * 2])
    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0))(x, scale, rows)
    leaves = [t.requires_grad_() for t in (x, scale)]
    for i, row in enumerate(rows):
        for one, other in zip(found, torch.autograd.grad(loss(*leaves, row), leaves), strict=True):
            torch.testing.assert_close(one[i], other, rtol=1e-6, atol=0)


def test_floors_of_lists_are_counted():
    x, s = torch.ones(3, 5), torch.ones(2)
    with pytest.raises(ValueError, match=r"scale_floors must have one entry per bit-width \(2\), got 1"):
        mbq.fake_quantize_multi(x, s, bits=(4, 2), scale_floors=[s[:1]])
    with pytest.raises(ValueError, match=r"scale_floors must have one entry per tensor \(1\), got 2"):
        mbq.fake_quantize_foreach([x], [s], bits=(4, 2), scale_floors=[s, s])
    with pytest.raises(ValueError, match=r"scale_floors\[0\] must have one entry per bit-width \(2\), got 3"):
        mbq.fake_quantize_foreach([x], [s], bits=(4, 2), scale_floors=[[s[:1]] * 3])
