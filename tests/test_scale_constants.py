"""Units and floors of scales are constants: what is saved of them, what raises, and both under torch.compile."""

import oracles
import pytest
import torch
from test_scale_floor_and_unit import FLOOR, every_op, make, raised, single
from torch._dynamo.testing import CompileCounterWithBackend

import mbq_kernels as mbq


@every_op
def test_units_and_floors_are_constants(device, call):
    x, scale = torch.randn(3, 20, device=device), torch.full((3,), -1.0, device=device).requires_grad_()
    floor, unit = (torch.full((3,), value, device=device).requires_grad_() for value in (0.2, 0.5))
    loss = sum(out.square().sum() for out in call(x, scale, floor, 0, unit))
    to_scale, *others = torch.autograd.grad(loss, (scale, floor, unit), allow_unused=True)
    assert others == [None, None] and (to_scale != 0).all()
    assert not any(out.requires_grad for out in call(x, scale.detach(), floor, 0, unit))


def test_no_copy_of_unit_and_floor_is_saved():
    x, scale, floor = make((6, 40), 0, torch.float32, "cpu")
    unit = floor * 2
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        mbq.fake_quantize(x, scale.requires_grad_(), bits=4, axis=0, scale_unit=unit, scale_floor=floor)
        mbq.double_round(x, scale, bits=4, axis=0, scale_unit=unit, scale_floor=floor)
    assert sorted(saved) == sorted(t.data_ptr() for t in (x, scale, floor, unit) * 2)


def test_float64_and_parameters_of_other_dtypes(device, backend):
    if device == "cuda" or backend == "triton":
        pytest.skip("float64 is for the CPU")
    x, scale, floor = make((6, 40), 0, torch.float64, device)
    unit = torch.rand(6) + 0.5
    out = mbq.fake_quantize(x, scale.bfloat16(), bits=5, axis=0, scale_unit=unit, scale_floor=floor.half())
    effective = raised(scale.bfloat16().double() * unit.double(), floor.half().double())
    oracles.assert_same(out, oracles.fake_quantize(x, effective, bits=5, axis=0))


VALUES = [(1, torch.nan, 1.0, FLOOR, "scale must be finite, got nan"),
          (0, torch.inf, 1.0, FLOOR, "scale must be finite, got inf"),
          (1, -torch.inf, 1.0, FLOOR, "scale must be finite, got -inf"),
          (1, 0.5, 1.0, 0.0, "scale_floor must be finite and > 0, got 0"),
          (0, -0.5, 1.0, -0.25, r"scale_floor must be finite and > 0, got -0\.25"),
          (1, 0.5, 1.0, torch.nan, "scale_floor must be finite and > 0, got nan"),
          (1, 0.5, 1.0, torch.inf, "scale_floor must be finite and > 0, got inf"),
          (1, 0.5, 0.0, FLOOR, "scale_unit must be finite and > 0, got 0"),
          (0, 0.5, -2.5, FLOOR, r"scale_unit must be finite and > 0, got -2\.5"),
          (1, -0.5, torch.nan, FLOOR, "scale_unit must be finite and > 0, got nan"),
          (2, 0.5, torch.inf, None, "scale_unit must be finite and > 0, got inf"),
          (2, 0.0, 1.0, None, "scale must be finite and > 0, got 0"),
          (1, torch.nan, 1.0, None, "scale must be finite and > 0, got nan"),
          (1, 1e-30, 1e-30, None, r"scale \* scale_unit must be finite and > 0, got 0"),
          (0, 1e30, 1e30, None, r"scale \* scale_unit must be finite and > 0, got inf")]


@every_op
@pytest.mark.parametrize("at, scale, unit, floor, message", VALUES,
                         ids=[f"{v[1]} of {v[2]} over {v[3]}" for v in VALUES])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_values_that_raise(backend, op, call, at, scale, unit, floor, message):
    scales, units, floors = torch.full((3,), 1.0), torch.ones(3), None if floor is None else torch.full((3,), FLOOR)
    scales[at], units[at] = scale, unit
    if floor is not None:
        floors[at], scales[at - 1] = floor, -1.0
    message = rf"^{op}: {message} \(element {at}(, tensor 0)?\)$"
    with mbq.use_backend(backend), pytest.raises(RuntimeError, match=message):
        call(torch.ones(3, 5), scales, floors, 0, units)


@every_op
@pytest.mark.parametrize("name", ["unit", "floor"])
@pytest.mark.parametrize("constant, error, message", [
    (torch.ones(4), ValueError, r"must have 1 or 3 elements .*, got 4"),
    (torch.ones(1), ValueError, r"must have the shape of scales?(\[0\])?, \(.*3,?\), got \(.*1,?\)"),
    (torch.ones(3, dtype=torch.int32), TypeError, "must be float32, bfloat16, float16 or float64, got torch.int32"),
    (torch.ones(3, device="meta"), ValueError, "must be on x's device cpu, got meta"),
], ids=["elements", "one", "dtype", "device"])
def test_what_is_no_unit_and_no_floor(op, call, name, constant, error, message):
    given = {"floor": None, "unit": None, name: constant}
    with pytest.raises(error, match=rf"^{op}: scale_{name}s?(\[0\])*(\[0\])? " + message):
        call(torch.ones(3, 5), torch.ones(3), **given)
    with pytest.raises(TypeError, match=rf"scale_{name}s? must be a tensor( or a sequence of tensors)?, got float"):
        single(torch.ones(3, 5), torch.ones(3), **{**given, name: 0.1})


def everything(x, scale, unit, floor, bits=4):
    """All of the ops, the gradient of each its own"""
    one, rows = {"scale_unit": unit, "scale_floor": floor}, {"scale_units": [[unit]], "scale_floors": [[floor]]}
    outs = [mbq.fake_quantize(x, scale, bits=bits, axis=0, **one),
            mbq.fake_quantize(x, scale, bits=bits, axis=0, scale_floor=floor),
            *mbq.fake_quantize_multi(x, [scale, scale * 2], bits=[bits, 2], axis=0, scale_units=[unit, unit],
                                     scale_floors=[floor, floor]),
            *mbq.fake_quantize_foreach([x], [[scale]], bits=[bits], axis=0, **rows)[0],
            *mbq.fake_quantize_foreach([x], [[scale]], [[x[:, 0]]], bits=[bits], axis=0, scale_floors=[[floor]])[0],
            mbq.double_round(x, scale, bits=bits // 2 + 2, axis=0, **one),
            mbq.fake_quantize_corrected(x, scale, bits=bits, axis=0, **one)]
    return torch.stack([out * out.detach() for out in outs])


def test_compile(device):
    """In one graph, with bits at run time: two compiles for all bit-widths."""
    x, scale, floor = make((6, 33), 0, torch.float32, device)
    unit = torch.rand(6, device=device) + 0.5
    leaves = [t.requires_grad_() for t in (x, scale)]
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    results = []
    for f in (compiled, everything):
        out = f(*leaves, unit, floor)
        results.append((out, *torch.autograd.grad(out.sum(), leaves)))
    for one, other in zip(*results, strict=True):
        oracles.assert_same(one, other)
    counter = CompileCounterWithBackend("eager")
    counted = torch.compile(everything, fullgraph=True, backend=counter)
    for bits in range(1, 9):
        constants = (x.detach(), scale.detach(), unit, floor, bits)
        oracles.assert_same(counted(*constants), everything(*constants))
    assert counter.frame_count <= 2


@every_op
def test_torch_func(device, call):
    x, scale, floor = make((6, 17), 0, torch.float32, device)
    loss = lambda x, scale, floor, unit: sum((out * out).sum() for out in call(x, scale, floor, 0, unit))  # noqa: E731
    rows, units = torch.stack([floor, floor * 2]), torch.rand(2, 6, device=device) + 0.5
    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))(x, scale, rows, units)
    leaves = [t.requires_grad_() for t in (x, scale)]
    for i, (row, unit) in enumerate(zip(rows, units, strict=True)):
        for one, other in zip(found, torch.autograd.grad(loss(*leaves, row, unit), leaves), strict=True):
            torch.testing.assert_close(one[i], other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["scale_units", "scale_floors"])
def test_units_and_floors_of_lists_are_counted(name):
    x, s = torch.ones(3, 5), torch.ones(2)
    with pytest.raises(ValueError, match=rf"{name} must have one entry per bit-width \(2\), got 1"):
        mbq.fake_quantize_multi(x, s, bits=(4, 2), **{name: [s[:1]]})
    with pytest.raises(ValueError, match=rf"{name} must have one entry per tensor \(1\), got 2"):
        mbq.fake_quantize_foreach([x], [s], bits=(4, 2), **{name: [s, s]})
    with pytest.raises(ValueError, match=rf"{name}\[0\] must have one entry per bit-width \(2\), got 3"):
        mbq.fake_quantize_foreach([x], [s], bits=(4, 2), **{name: [[s[:1]] * 3]})
