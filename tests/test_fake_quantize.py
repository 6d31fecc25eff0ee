"""fake_quantize: forward, gradients, edge cases, errors, transforms - over backends, dtypes and shapes."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

SHAPES = [((1,), None), ((7,), None), ((2053,), None), ((3, 1031), None), ((4, 1031), 0), ((3, 50, 3), 1),
          ((5, 6, 2, 3), 1), ((4, 3, 17), -1), ((2, 33, 40), -2), ((75, 32), 0), ((1, 5), 0), ((6, 4), 0)]
shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def make(shape, axis, dtype, device, offset=True, spread=4.0):
    x = (torch.randn(shape) * spread).to(device, dtype)
    count = 1 if axis is None else shape[axis]
    scale = (torch.rand(count) * 0.5 + 0.3).to(device)
    return x, scale, (torch.randn(count) * 0.5).to(device) if offset else None


@shapes
@dtypes
@pytest.mark.parametrize("bits, signed", [(8, True), (4, False), (2, True), (1, True), (1, False)])
def test_forward(device, shape, axis, dtype, bits, signed):
    x, scale, offset = make(shape, axis, dtype, device)
    for o in (None, offset):
        actual = mbq.fake_quantize(x, scale, o, bits=bits, signed=signed, axis=axis)
        assert actual.stride() == x.stride()
        oracles.assert_same(actual, oracles.fake_quantize(x, scale, o, bits=bits, signed=signed, axis=axis))


@shapes
@dtypes
@pytest.mark.parametrize("bits, signed", [(4, True), (3, False), (1, True)])
def test_gradients(device, shape, axis, dtype, bits, signed):
    x, scale, offset = make(shape, axis, dtype, device)
    grad = torch.randn(shape).to(device, dtype)
    factor = 1 / (x.numel() / scale.numel() * oracles.bounds(bits, signed)[1]) ** 0.5
    for o in (None, offset):
        leaves = [t.clone().requires_grad_() for t in (x, scale, o) if t is not None]
        out = mbq.fake_quantize(leaves[0], leaves[1], leaves[2] if o is not None else None,
                                bits=bits, signed=signed, axis=axis)
        actual = torch.autograd.grad(out, leaves, grad)
        expected = oracles.gradients(grad, x, scale, o, bits=bits, signed=signed, axis=axis)
        oracles.assert_same(actual[0], expected[0].to(dtype), "grad x")
        bound = oracles.sum_tolerance(grad, x, scale, o, axis, factor)
        oracles.assert_within(actual[1], expected[1], bound, "grad scale")
        if o is not None:
            oracles.assert_within(actual[2], expected[2], bound, "grad offset")


@dtypes
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_ties_edges_and_special_values(device, dtype, bits, signed):
    lo, hi = oracles.bounds(bits, signed)
    for scale in (0.25, 0.1, 3e-39 if dtype != torch.float16 else 0.0625):
        x = oracles.awkward_values(scale, lo, hi, dtype).to(device)
        s = torch.tensor(scale, device=device)
        actual = mbq.fake_quantize(x, s, bits=bits, signed=signed, out_dtype=torch.float32)
        oracles.assert_same(actual, oracles.fake_quantize(x, s, bits=bits, signed=signed, out_dtype=torch.float32))


@pytest.mark.parametrize("scale", [0.1, 1e-38, 3e-40])
def test_results_of_bfloat16_keep_subnormals_and_nan(scale):
    """Whole cache lines, as x_hat is rounded: the bfloat16 instruction of processors takes subnormals for zeros."""
    x = torch.randn(3000) * 40 * scale
    x[[5, 1100, 2990]] = torch.nan
    s = torch.tensor(scale)
    actual = mbq.fake_quantize(x, s, bits=8, out_dtype=torch.bfloat16)
    oracles.assert_same(actual, oracles.fake_quantize(x, s, bits=8, signed=True, out_dtype=torch.bfloat16))


def test_hand_worked_table(device):
    x = torch.tensor([-3.0, -2.0, -1.5, -0.5, -0.25, 0.0, 0.5, 0.75, 1.0, 1.5, torch.nan, torch.inf], device=device)
    scale = torch.tensor([0.5], device=device)
    actual = mbq.fake_quantize(x, scale, bits=2)  # codes -2 .. 1
    nan = torch.nan
    oracles.assert_same(actual, torch.tensor([-1, -1, -1, -0.5, 0, 0, 0.5, 0.5, 0.5, 0.5, nan, 0.5]))
    one_bit = mbq.fake_quantize(x, scale, bits=1)  # signs
    oracles.assert_same(one_bit, torch.tensor([-0.5, -0.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, 0.5, 0.5, nan, 0.5]))


def test_gradient_of_nan_goes_to_scale_alone(device):
    x = torch.tensor([[torch.nan, 0.1], [0.2, torch.inf]], device=device, requires_grad=True)
    scale = torch.full((2,), 0.1, device=device, requires_grad=True)
    offset = torch.zeros(2, device=device, requires_grad=True)
    mbq.fake_quantize(x, scale, offset, bits=4, axis=0, grad_factor=1.0).backward(torch.ones(2, 2, device=device))
    assert x.grad.tolist() == [[0, 1], [1, 0]]
    assert scale.grad[0].isnan() and scale.grad[1] == 7.0
    assert offset.grad.tolist() == [0, 1]


@pytest.mark.parametrize("count", [32, 33, 7])
def test_infinite_offset_clips_everything(device, count):
    """v = -inf for every element, whatever the length: nothing of the padding of a tail may reach the sums."""
    scale = torch.tensor([0.5], device=device, requires_grad=True)
    offset = torch.tensor([torch.inf], device=device, requires_grad=True)
    mbq.fake_quantize(torch.zeros(count, device=device), scale, offset, bits=4, grad_factor=1.0).sum().backward()
    assert scale.grad.item() == -8 * count and offset.grad.item() == count


def test_saturated_gradients_never_multiply(device):
    """A select, not a product: an infinite upstream gradient of a clamped element gives 0, not NaN."""
    x = torch.tensor([100.0], device=device, requires_grad=True)
    out = mbq.fake_quantize(x, torch.ones(1, device=device), bits=4)
    out.backward(torch.tensor([torch.inf], device=device))
    assert x.grad.item() == 0


@dtypes
@pytest.mark.parametrize("out_dtype", oracles.DTYPES, ids=str)
def test_out_dtype_rounds_once(device, dtype, out_dtype):
    x, scale, offset = make((3, 700), 0, dtype, device)
    leaf = x.clone().requires_grad_()
    actual = mbq.fake_quantize(leaf, scale, offset, bits=8, axis=0, out_dtype=out_dtype)
    oracles.assert_same(actual, oracles.fake_quantize(x, scale, offset, bits=8, axis=0, out_dtype=out_dtype))
    actual.sum().backward()
    assert leaf.grad.dtype == dtype


@pytest.mark.parametrize("axis", [None, 0, 1, 3])
def test_memory_formats(device, axis):
    base = torch.randn(3, 5, 4, 6, device=device)
    wide_base = torch.randn(3, 5, 8, 12, device=device)
    for x in (base.to(memory_format=torch.channels_last), base.permute(2, 0, 3, 1), wide_base[:, :, ::2, ::2],
              base[:, 1:2].expand(3, 5, 4, 6), base.transpose(0, 3)):
        scale = torch.rand(1 if axis is None else x.shape[axis], device=device) + 0.2
        leaf = x.detach().requires_grad_()
        out = mbq.fake_quantize(leaf, scale, bits=3, axis=axis)
        assert out.stride() == torch.empty_like(x).stride()
        oracles.assert_same(out, oracles.fake_quantize(x, scale, bits=3, axis=axis))
        grad = torch.randn(x.shape, device=device)
        out.backward(grad)
        oracles.assert_same(leaf.grad, oracles.gradients(grad, x, scale, bits=3, axis=axis)[0].float(), "grad x")


def test_empty_and_scalar(device):
    scale = torch.ones(1, device=device, requires_grad=True)
    for shape in ((0,), (3, 0), (0, 4)):
        x = torch.empty(shape, device=device, requires_grad=True)
        out = mbq.fake_quantize(x, scale, bits=4)
        grads = torch.autograd.grad(out.sum(), (x, scale))
        assert out.shape == shape and grads[0].shape == shape and grads[1].item() == 0
    out = mbq.fake_quantize(torch.empty(0, 4, device=device), torch.ones(4, device=device), bits=4, axis=1)
    assert out.shape == (0, 4)
    for shape, axis in (((3, 0), 1), ((0, 5), 0)):  # no channels at all
        x, scales = torch.empty(shape, device=device).requires_grad_(), torch.ones(0, device=device).requires_grad_()
        grads = torch.autograd.grad(mbq.fake_quantize(x, scales, bits=4, axis=axis).sum(), (x, scales))
        assert grads[0].shape == shape and grads[1].shape == (0,)
    assert mbq.fake_quantize(torch.tensor(1.3, device=device), scale, bits=4).item() == 1.0


def test_float64(device, backend):
    x = torch.randn(5, 70, dtype=torch.float64, device=device)
    scale = torch.rand(5, dtype=torch.float64, device=device) + 0.1
    if device == "cuda" or backend == "triton":
        with pytest.raises(TypeError, match=r"x must be float32, bfloat16 or float16 .*got torch.float64"):
            mbq.fake_quantize(x, scale, bits=8, axis=0)
        return
    out = mbq.fake_quantize(x.requires_grad_(), scale.requires_grad_(), bits=8, axis=0)
    oracles.assert_same(out, oracles.fake_quantize(x, scale, bits=8, axis=0))
    grad = torch.randn(5, 70, dtype=torch.float64)
    expected = oracles.gradients(grad, x, scale, bits=8, axis=0)
    for actual, wanted in zip(torch.autograd.grad(out, (x, scale), grad), expected, strict=False):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_scale_keeps_shape_and_dtype(device):
    x = torch.randn(4, 6, device=device)
    for scale in (torch.tensor(0.3), torch.full((1, 1), 0.3), torch.full((4,), 0.3, dtype=torch.bfloat16)):
        leaf = scale.to(device).requires_grad_()
        mbq.fake_quantize(x, leaf, bits=4, axis=0).sum().backward()
        assert leaf.grad.shape == scale.shape and leaf.grad.dtype == scale.dtype


def test_only_inputs_are_saved():
    """The backward of a weight keeps the parameter and its scale; of an activation, the input."""
    x, scale, offset = (t.requires_grad_() for t in make((8, 100), 0, torch.float32, "cpu"))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        mbq.fake_quantize(x, scale, offset, bits=4, axis=0)
    assert sorted(saved) == sorted(t.data_ptr() for t in (x, scale, offset))


ERRORS = [
    ({"x": torch.ones(4, dtype=torch.int32)}, TypeError,
     "x must be float32, bfloat16, float16 or float64, got torch.int32"),
    ({"x": torch.eye(3).to_sparse()}, TypeError, "x must be a dense tensor, got layout torch.sparse_coo"),
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"bits": 0}, ValueError, "bits must be between 1 and 8, got 0"),
    ({"bits": 9}, ValueError, "bits must be between 1 and 8, got 9"),
    ({"bits": 4.0}, TypeError, r"bits must be an integer, got 4\.0"),
    ({"bits": True}, TypeError, "bits must be an integer, got True"),
    ({"signed": 1}, TypeError, "signed must be True or False, got 1"),
    ({"axis": 2}, ValueError, r"axis must be in \[-2, 2\) for x of shape \(16, 8\), got 2"),
    ({"axis": 0.0}, TypeError, r"axis must be an integer or None, got 0\.0"),
    ({"scale": "0.1"}, TypeError, "scale must be a tensor, got str"),
    ({"scale": torch.ones(4, dtype=torch.int64)}, TypeError, "scale must be float32.*got torch.int64"),
    ({"scale": torch.ones(4), "axis": 0}, ValueError,
     r"scale must have 1 or 16 elements \(x has shape \(16, 8\), axis 0\), got 4"),
    ({"scale": torch.ones(1, 16), "axis": 0}, ValueError,
     r"scale must have shape \(16,\) or \(16, 1\) \(x has shape \(16, 8\), axis 0\), got \(1, 16\)"),
    ({"scale": torch.ones(16)}, ValueError, "scale must have 1 element without axis, got 16"),
    ({"scale": torch.ones(1, device="meta")}, ValueError, "scale must be on x's device cpu, got meta"),
    ({"offset": torch.ones(2)}, ValueError, "offset must have 1 element without axis, got 2"),
    ({"scale": torch.ones(16), "axis": 0, "offset": torch.ones(1)}, ValueError,
     r"offset must have the shape of scale, \(16,\), got \(1,\)"),
    ({"scale": torch.zeros(1)}, RuntimeError, "scale must be finite and > 0, got 0"),
    ({"scale": torch.tensor([-0.5])}, RuntimeError, r"scale must be finite and > 0, got -0\.5"),
    ({"scale": torch.tensor([torch.nan])}, RuntimeError, "scale must be finite and > 0, got nan"),
    ({"scale": torch.tensor([torch.inf])}, RuntimeError, "scale must be finite and > 0, got inf"),
    ({"grad_factor": "1"}, TypeError, "grad_factor must be a number, got '1'"),
    ({"out_dtype": torch.int8}, TypeError, "out_dtype must be float32, bfloat16, float16 or float64, got torch.int8"),
    ({"out_dtype": torch.float64}, TypeError, "out_dtype must be float64 exactly when x is"),
]


@pytest.mark.parametrize("changes, error, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend, changes, error, message):
    arguments = {"x": torch.ones(16, 8), "scale": torch.ones(1), "bits": 4, **changes}
    with mbq.use_backend(backend), pytest.raises(error, match="^fake_quantize: " + message):
        mbq.fake_quantize(**arguments)
