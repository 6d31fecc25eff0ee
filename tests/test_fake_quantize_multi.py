"""fake_quantize_multi: K bit-widths from one read are K calls of fake_quantize, gradients added in order."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

BITS = (8, 4, 1, 2)
LEVELS = len(BITS)
SHAPES = [((7,), None), ((3, 1031), None), ((4, 1031), 0), ((3, 50, 3), 1), ((2, 5, 6), -1)]
shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def make(shape, axis, dtype, device, levels=LEVELS):
    count = 1 if axis is None else shape[axis]
    scales = torch.rand(levels, count, device=device) * 0.5 + 0.3
    return (torch.randn(shape) * 4).to(device, dtype), scales, torch.randn(levels, count, device=device) * 0.5


@shapes
@dtypes
@pytest.mark.parametrize("signed", [True, False])
def test_forward(device, shape, axis, dtype, signed):
    x, scales, offsets = make(shape, axis, dtype, device)
    for given in (None, offsets):
        outs = mbq.fake_quantize_multi(x, scales, given, bits=BITS, signed=signed, axis=axis)
        assert isinstance(outs, tuple) and len(outs) == len(BITS)
        for k, b in enumerate(BITS):
            offset = None if given is None else given[k]
            expected = oracles.fake_quantize(x, scales[k], offset, bits=b, signed=signed, axis=axis)
            oracles.assert_same(outs[k], expected, f"x_hat[{k}]")


@shapes
@dtypes
@pytest.mark.parametrize("bits", [BITS, (4,), (8, 7, 6, 5, 4, 3, 2, 1)], ids=str)
def test_gradients(device, shape, axis, dtype, bits):
    x, scales, offsets = make(shape, axis, dtype, device, len(bits))
    grads = [torch.randn(shape).to(device, dtype) for _ in bits]
    leaves = [t.requires_grad_() for t in (x, scales, offsets)]
    actual = torch.autograd.grad(mbq.fake_quantize_multi(*leaves, bits=bits, axis=axis), leaves, grads)
    total = torch.zeros(shape)
    for k, b in enumerate(bits):
        one = oracles.gradients(grads[k], x, scales[k], offsets[k], bits=b, axis=axis)
        total += one[0].float()  # in this order, in float32
        factor = 1 / (x.numel() / scales.shape[1] * oracles.bounds(b, True)[1]) ** 0.5
        bound = oracles.sum_tolerance(grads[k], x, scales[k], offsets[k], axis, factor)
        oracles.assert_within(actual[1][k], one[1], bound, f"grad scale {k}")
        oracles.assert_within(actual[2][k], one[2], bound, f"grad offset {k}")
    oracles.assert_same(actual[0], total.to(dtype), "grad x")


def test_forms_of_scales_agree(device):
    x, scales, _ = make((4, 33), 0, torch.float32, device)
    expected = mbq.fake_quantize_multi(x, scales, bits=BITS, axis=0)
    for form in ([row.clone() for row in scales], tuple(scales), scales.to(torch.float64)):
        for actual, wanted in zip(mbq.fake_quantize_multi(x, form, bits=BITS, axis=0), expected, strict=True):
            oracles.assert_same(actual, wanted)
    per_tensor = scales[:, 0].contiguous().requires_grad_()
    outs = mbq.fake_quantize_multi(x, per_tensor, bits=BITS)
    torch.autograd.backward(outs, [torch.ones_like(x)] * len(BITS))
    assert per_tensor.grad.shape == (len(BITS),)


def test_separate_scales_get_separate_gradients(device):
    x = torch.randn(3, 20, device=device)
    scales = [torch.full((3,), 0.2, device=device).requires_grad_() for _ in range(2)]
    outs = mbq.fake_quantize_multi(x, scales, bits=(4, 2), axis=0)
    outs[1].sum().backward()
    assert scales[0].grad.tolist() == [0, 0, 0]  # an output that is not used gets a zero gradient
    single = torch.full((3,), 0.2, device=device).requires_grad_()
    mbq.fake_quantize(x, single, bits=2, axis=0).sum().backward()
    torch.testing.assert_close(scales[1].grad, single.grad)


def test_memory_formats_and_empty(device):
    for x in (torch.randn(3, 5, 4, 6, device=device).to(memory_format=torch.channels_last),
              torch.randn(3, 5, 8, 6, device=device)[:, :, ::2],
              torch.empty(0, 5, 2, 2, device=device), torch.empty(2, 0, 3, device=device)):
        leaf, scales = x.requires_grad_(), torch.rand(2, x.shape[1], device=device) + 0.2
        outs = mbq.fake_quantize_multi(leaf, scales, bits=(4, 2), axis=1)
        assert all(out.stride() == torch.empty_like(x).stride() for out in outs)
        oracles.assert_same(outs[1], oracles.fake_quantize(x, scales[1], bits=2, axis=1))
        (grad,) = torch.autograd.grad(outs[0].sum() + outs[1].sum(), leaf)
        assert grad.shape == x.shape


def test_out_dtype(device):
    x, scales, _ = make((40,), None, torch.float32, device)
    outs = mbq.fake_quantize_multi(x, scales, bits=BITS, out_dtype=torch.bfloat16)
    for out, b, scale in zip(outs, BITS, scales, strict=True):
        oracles.assert_same(out, oracles.fake_quantize(x, scale, bits=b, out_dtype=torch.bfloat16))


def test_x_is_saved_once():
    x, scales, _ = make((8, 100), 0, torch.float32, "cpu")
    leaf, saved = x.requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mbq.fake_quantize_multi(leaf, scales, bits=BITS, axis=0)
    assert [t.data_ptr() for t in saved if t.shape == x.shape] == [x.data_ptr()]
    assert all(t.numel() <= scales.numel() for t in saved if t.shape != x.shape)


ERRORS = [
    ({"bits": 4}, TypeError, "bits must be a sequence of integers, got 4"),
    ({"bits": ()}, ValueError, "bits must name 1 to 8 bit-widths, got 0"),
    ({"bits": (4,) * 9}, ValueError, "bits must name 1 to 8 bit-widths, got 9"),
    ({"bits": (4, 9)}, ValueError, "bits must be between 1 and 8, got 9"),
    ({"scales": torch.ones(3)}, ValueError, r"scales must have one entry per bit-width \(2\), got 3"),
    ({"scales": torch.tensor(1.0)}, ValueError, r"scales must be \(2,\), \(2, C\) or a sequence, got a 0-dim tensor"),
    ({"scales": ["1", 2.0]}, TypeError, r"scales\[0\] must be a tensor, got str"),
    ({"scales": 1.0}, TypeError, "scales must be a tensor or a sequence of tensors, got float"),
    ({"scales": torch.ones(2, 5), "axis": 0}, ValueError, r"scales\[0\] must have 1 or 16 elements"),
    ({"scales": [torch.ones(16), torch.ones(1)], "axis": 0}, ValueError,
     r"scales must all have 1 or all have 16 elements, got \[16, 1\]"),
    ({"scales": torch.ones(2, 16), "offsets": torch.ones(2, 1), "axis": 0}, ValueError,
     r"offsets must have the shape of scales, \(2, 16\), got \(2, 1\)"),
    ({"offsets": torch.ones(3)}, ValueError, r"offsets must have one entry per bit-width \(2\), got 3"),
    ({"scales": torch.tensor([1.0, -1.0])}, RuntimeError, "scale must be finite and > 0, got -1"),
    ({"x": torch.ones(2, dtype=torch.int64)}, TypeError, "x must be float32.*got torch.int64"),
]


@pytest.mark.parametrize("changes, error, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend, changes, error, message):
    arguments = {"x": torch.ones(16, 8), "scales": torch.ones(2), "bits": (4, 2), **changes}
    with mbq.use_backend(backend), pytest.raises(error, match="^fake_quantize_multi: " + message):
        mbq.fake_quantize_multi(**arguments)
