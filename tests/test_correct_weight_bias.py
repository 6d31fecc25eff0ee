"""correct_weight_bias against float64: values, moments, both gradients, constant channels, layouts."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
SHAPES = [((1, 1), 0), ((7,), 0), ((1, 9), 0), ((16, 5, 3, 3), 0), ((5, 1031), 0), ((6, 5, 7), 1), ((40, 8, 3), -1),
          ((3, 4097), None), ((2, 33, 9), 2)]
shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)


def make(shape, dtype, device, mean=0.0, spread=1.0):
    ref = torch.randn(shape) * spread + mean
    step = spread * 0.7
    return (torch.round(ref / step) * step).to(device, dtype), ref.to(device, dtype)


def oracle(w_quant, w_ref, axis, eps=1e-8, detach=True):
    """In float64, differentiable; statistics by torch.std."""
    dims = [d for d in range(w_quant.dim()) if axis is None or d != axis % w_quant.dim()]
    count = w_quant.numel() // (1 if axis is None else w_quant.shape[axis])
    stats = (w_quant.detach(), w_ref.detach()) if detach else (w_quant, w_ref)
    means = [s.mean(dims, keepdim=True) if dims else s for s in stats]
    if count < 2:
        return 0 * w_quant + means[1]
    deviations = [s.std(dims, keepdim=True) for s in stats]
    factor = deviations[1] / (deviations[0] + eps)
    constant = (w_quant.detach() == w_quant.detach().amax(dims, keepdim=True)).all(dim=tuple(dims), keepdim=True) \
        if dims else torch.ones_like(factor, dtype=torch.bool)
    return torch.where(constant, 0, factor) * (w_quant - means[0]) + means[1]


@shapes
@dtypes
@pytest.mark.parametrize("mean, spread", [(0.0, 1.0), (17.0, 100.0), (50.0, 0.5)])
def test_values(device, shape, axis, dtype, mean, spread):
    quant, ref = make(shape, dtype, device, mean, spread)
    actual = mbq.correct_weight_bias(quant, ref, axis=axis)
    expected = oracle(quant.cpu().double(), ref.cpu().double(), axis)
    size = expected.abs().max()
    assert actual.dtype == dtype and actual.shape == quant.shape
    oracles.assert_within(actual, expected, torch.finfo(dtype).eps * expected.abs() + 4e-7 * size, "y")


@shapes
@dtypes
def test_detached_gradient_is_the_factor(device, shape, axis, dtype):
    quant, ref = make(shape, dtype, device)
    leaf_q, leaf_r, grad = quant.requires_grad_(), ref.requires_grad_(), torch.randn(shape).to(device, dtype)
    to_q, to_r = torch.autograd.grad(mbq.correct_weight_bias(leaf_q, leaf_r, axis=axis), (leaf_q, leaf_r), grad,
                                     allow_unused=True)
    q64, r64 = (t.detach().cpu().double().requires_grad_() for t in (quant, ref))
    (want,) = torch.autograd.grad(oracle(q64, r64, axis), q64, grad.cpu().double())
    oracles.assert_within(to_q, want, torch.finfo(dtype).eps * want.abs() + 1e-6, "grad w_quant")
    assert to_r is None


@shapes
@dtypes
def test_full_gradient(device, shape, axis, dtype):
    quant, ref = make(shape, dtype, device)
    leaf_q, leaf_r, grad = quant.requires_grad_(), ref.requires_grad_(), torch.randn(shape).to(device, dtype)
    actual = torch.autograd.grad(mbq.correct_weight_bias(leaf_q, leaf_r, axis=axis, detach_stats=False),
                                 (leaf_q, leaf_r), grad)
    q64, r64 = (t.detach().cpu().double().requires_grad_() for t in (quant, ref))
    wanted = torch.autograd.grad(oracle(q64, r64, axis, detach=False), (q64, r64), grad.cpu().double())
    for one, want, name in zip(actual, wanted, ("grad w_quant", "grad w_ref"), strict=True):
        want = torch.nan_to_num(want)
        oracles.assert_within(one, want, torch.finfo(dtype).eps * want.abs() + 4e-6 * (1 + want.abs().max()), name)


def test_gradcheck():
    for axis in (0, 1, None):
        quant, ref = (torch.randn(4, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
        assert torch.autograd.gradcheck(
            lambda q, r, axis=axis: mbq.correct_weight_bias(q, r, axis=axis, detach_stats=False), (quant, ref))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-30])
def test_constant_channels_become_the_mean(device, value):
    ref = torch.randn(3, 1000, device=device).requires_grad_()
    quant = torch.full((3, 1000), value, device=device)
    quant[1] = torch.randn(1000, device=device)
    quant.requires_grad_()
    y = mbq.correct_weight_bias(quant, ref, detach_stats=False)
    torch.testing.assert_close(y[0], ref[0].mean().expand(1000))
    to_quant, to_ref = torch.autograd.grad(y.sum(), (quant, ref))
    assert to_quant[0].abs().max() == 0 and to_ref.isfinite().all()
    torch.testing.assert_close(to_ref[2], torch.ones_like(to_ref[2]))


def test_a_nearly_constant_channel_is_not_blown_up(device):
    """One ulp of rounding among a thousand equal values would get a factor of millions."""
    quant = torch.full((1, 1000), 0.3, device=device)
    quant[0, 7] = torch.nextafter(quant[0, 7], torch.tensor(1.0, device=device))
    y = mbq.correct_weight_bias(quant, torch.randn(1, 1000, device=device))
    assert (y == y[0, 0]).all()


def test_memory_formats_empty_and_nan(device):
    ref = torch.randn(4, 6, 5, 3, device=device).to(memory_format=torch.channels_last)
    quant = ref.round()
    y = mbq.correct_weight_bias(quant, ref.contiguous(), axis=1)
    assert y.stride() == quant.stride()
    torch.testing.assert_close(y, mbq.correct_weight_bias(quant.contiguous(), ref.contiguous(), axis=1))
    half = mbq.correct_weight_bias(quant[:, :, ::2], ref[:, :, ::2], axis=1)
    torch.testing.assert_close(half, mbq.correct_weight_bias(quant[:, :, ::2].contiguous(), ref[:, :, ::2].contiguous(),
                                                             axis=1))
    for shape in ((0, 3), (3, 0)):
        empty = torch.empty(shape, device=device)
        assert mbq.correct_weight_bias(empty, empty).shape == shape
    quant = quant.contiguous()
    quant[1, 2, 0, 0] = torch.nan
    bad = mbq.correct_weight_bias(quant, ref, axis=1).isnan()
    assert bad[:, 2].all() and bad.sum() == bad[:, 2].numel()


def test_a_reference_of_another_dtype(device):
    quant, ref = make((4, 50), torch.float32, device)
    assert mbq.correct_weight_bias(quant.bfloat16(), ref).dtype == torch.bfloat16


W = torch.randn(3, 4)
ERRORS = [
    ({"w_ref": W[:2]}, ValueError, r"w_ref must have the shape of w_quant, \(3, 4\), got \(2, 4\)"),
    ({"w_ref": W.double()}, TypeError, "w_ref must be float64 exactly when w_quant is, got torch.float64 beside "
                                       "torch.float32"),
    ({"w_quant": W.int()}, TypeError, "w_quant must be float32, bfloat16, float16 or float64, got torch.int32"),
    ({"axis": 2}, ValueError, r"axis must be in \[-2, 2\) for w_quant of shape \(3, 4\), got 2"),
    ({"eps": -1.0}, ValueError, "eps must be at least 0, got -1.0"),
    ({"eps": None}, TypeError, "eps must be a number, got None"),
    ({"detach_stats": 1}, TypeError, "detach_stats must be True or False, got 1"),
    ({"w_ref": W.to("meta")}, ValueError, "w_ref must be on w_quant's device cpu, got meta"),
]


@pytest.mark.parametrize("options, error, message", ERRORS, ids=[row[2][:30] for row in ERRORS])
def test_errors(options, error, message):
    given = {"w_quant": W, "w_ref": W, **options}
    with pytest.raises(error, match=f"^correct_weight_bias: {message}$"):
        mbq.correct_weight_bias(given.pop("w_quant"), given.pop("w_ref"), **given)
