"""double_round at the edges: scales, dtypes, memory formats, empty tensors, what is saved, and errors."""

import oracles
import pytest
import torch
from test_double_round import BITS, dtypes, make, oracle, oracle_gradients

import mbq_kernels as mbq

OP = "double_round"


def test_huge_and_tiny_scales(device):
    """scale * 2^D overflows, and is subnormal."""
    x = torch.tensor([0.0, 1e38, -3e38], device=device)
    scale = torch.tensor([2.0**126], device=device)
    assert mbq.double_round(x, scale, bits=2).tolist() == [0, 0, 0]
    tiny = torch.tensor([3e-39], device=device)
    x = torch.tensor([3e-39 * 127, 3e-39 * 33, -1.0], device=device)
    oracles.assert_same(mbq.double_round(x, tiny, bits=4), oracle(x, tiny, bits=4))


@dtypes
@pytest.mark.parametrize("out_dtype", oracles.DTYPES, ids=str)
def test_out_dtype_rounds_once(device, dtype, out_dtype):
    x, scale = make((3, 700), 0, dtype, device)
    leaf = x.clone().requires_grad_()
    actual = mbq.double_round(leaf, scale, bits=5, axis=0, out_dtype=out_dtype)
    oracles.assert_same(actual, oracle(x, scale, bits=5, axis=0, out_dtype=out_dtype))
    actual.sum().backward()
    assert leaf.grad.dtype == dtype


@pytest.mark.parametrize("axis", [None, 0, 1, 3])
def test_memory_formats(device, axis):
    base = torch.randn(3, 5, 4, 6, device=device)
    wide_base = torch.randn(3, 5, 8, 12, device=device)
    for x in (base.to(memory_format=torch.channels_last), base.permute(2, 0, 3, 1), wide_base[:, :, ::2, ::2],
              base[:, 1:2].expand(3, 5, 4, 6)):
        scale = torch.rand(1 if axis is None else x.shape[axis], device=device) * 0.02 + 0.01
        leaf = x.detach().requires_grad_()
        outs = mbq.double_round(leaf, scale, bits=(4, 3), axis=axis)
        assert all(out.stride() == torch.empty_like(x).stride() for out in outs)
        oracles.assert_same(outs[1], oracle(x, scale, bits=3, axis=axis))
        grad = torch.randn(x.shape, device=device)
        outs[1].backward(grad)
        oracles.assert_same(leaf.grad, oracle_gradients(grad, x, scale, bits=3, axis=axis)[0].float(), "grad x")


def test_empty_and_scalar(device):
    scale = torch.ones(1, device=device, requires_grad=True)
    for shape in ((0,), (3, 0), (0, 4)):
        x = torch.empty(shape, device=device, requires_grad=True)
        outs = mbq.double_round(x, scale, bits=(4, 2))
        grads = torch.autograd.grad(outs[0].sum() + outs[1].sum(), (x, scale))
        assert outs[1].shape == shape and grads[0].shape == shape and grads[1].item() == 0
    for shape, axis in (((3, 0), 1), ((0, 5), 0)):  # no channels at all
        x, scales = torch.empty(shape, device=device).requires_grad_(), torch.ones(0, device=device).requires_grad_()
        grads = torch.autograd.grad(mbq.double_round(x, scales, bits=4, axis=axis).sum(), (x, scales))
        assert grads[0].shape == shape and grads[1].shape == (0,)
    assert mbq.double_round(torch.tensor(23.6, device=device), scale, bits=4).item() == 32  # 24 / 16 = 1.5 -> 2


def test_float64(device, backend):
    x = torch.randn(5, 70, dtype=torch.float64, device=device)
    scale = torch.rand(5, dtype=torch.float64, device=device) * 0.02 + 0.01
    if device == "cuda" or backend == "triton":
        with pytest.raises(TypeError, match=r"x must be float32, bfloat16 or float16 .*got torch.float64"):
            mbq.double_round(x, scale, bits=4, axis=0)
        return
    out = mbq.double_round(x.requires_grad_(), scale.requires_grad_(), bits=4, axis=0)
    oracles.assert_same(out, oracle(x, scale, bits=4, axis=0))
    grad = torch.randn(5, 70, dtype=torch.float64)
    expected = oracle_gradients(grad, x, scale, bits=4, axis=0)
    for actual, wanted in zip(torch.autograd.grad(out, (x, scale), grad), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_scale_keeps_shape_and_dtype(device):
    x = torch.randn(4, 6, device=device)
    for scale in (torch.tensor(0.3), torch.full((1, 1), 0.3), torch.full((4,), 0.3, dtype=torch.bfloat16)):
        leaf = scale.to(device).requires_grad_()
        sum(out.sum() for out in mbq.double_round(x, leaf, bits=(4, 2), axis=0)).backward()
        assert leaf.grad.shape == scale.shape and leaf.grad.dtype == scale.dtype


def test_only_inputs_are_saved():
    x, scale = (t.requires_grad_() for t in make((8, 100), 0, torch.float32, "cpu"))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        mbq.double_round(x, scale, bits=BITS, axis=0)
    assert sorted(saved) == sorted((x.data_ptr(), scale.data_ptr()))


ERRORS = [
    ({"x": torch.ones(4, dtype=torch.int32)}, TypeError, "x must be float32.*got torch.int32"),
    ({"bits": 1}, ValueError, r"bits must be between 2 and high_bits, 8, got 1 \(at 1 bit a code 0 has no sign\)"),
    ({"bits": (4, 1)}, ValueError, "bits must be between 2 and high_bits, 8, got 1"),
    ({"bits": 0}, ValueError, "bits must be between 1 and 8, got 0"),
    ({"bits": 5, "high_bits": 4}, ValueError, "bits must be between 2 and high_bits, 4, got 5$"),
    ({"bits": True}, TypeError, "bits must be an integer, got True"),
    ({"bits": 4.0}, TypeError, r"bits must be a sequence of integers, got 4\.0"),
    ({"bits": (4.0,)}, TypeError, r"bits must be an integer, got 4\.0"),
    ({"bits": ()}, ValueError, "bits must name 1 to 8 bit-widths, got 0"),
    ({"bits": (4,) * 9}, ValueError, "bits must name 1 to 8 bit-widths, got 9"),
    ({"high_bits": 1}, ValueError, "high_bits must be between 2 and 8, got 1"),
    ({"high_bits": 9}, ValueError, "high_bits must be between 2 and 8, got 9"),
    ({"high_bits": 8.0}, TypeError, r"high_bits must be an integer, got 8\.0"),
    ({"rounding": "up"}, ValueError, "rounding must be 'half_even' or 'half_up', got 'up'"),
    ({"scale_chain": 1}, TypeError, "scale_chain must be True or False, got 1"),
    ({"grad_factor": "1"}, TypeError, "grad_factor must be a number, got '1'"),
    ({"axis": 2}, ValueError, r"axis must be in \[-2, 2\) for x of shape \(16, 8\), got 2"),
    ({"scale": "0.1"}, TypeError, "scale must be a tensor, got str"),
    ({"scale": torch.ones(4), "axis": 0}, ValueError, "scale must have 1 or 16 elements"),
    ({"scale": torch.ones(2, 16), "axis": 0, "bits": (4, 2)}, ValueError, "scale must have 1 or 16 elements"),
    ({"scale": torch.zeros(1)}, RuntimeError, "scale must be finite and > 0, got 0"),
    ({"scale": torch.tensor([torch.nan])}, RuntimeError, "scale must be finite and > 0, got nan"),
    ({"out_dtype": torch.int8}, TypeError, "out_dtype must be float32, bfloat16, float16 or float64, got torch.int8"),
]


@pytest.mark.parametrize("changes, error, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend, changes, error, message):
    arguments = {"x": torch.ones(16, 8), "scale": torch.ones(1), "bits": 4, **changes}
    with mbq.use_backend(backend), pytest.raises(error, match="^double_round: " + message):
        mbq.double_round(**arguments)
