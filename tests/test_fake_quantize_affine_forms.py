"""fake_quantize_affine in the arithmetic of other people's code: autograd of what is written out, bit for bit."""

import itertools

import oracles
import pytest
import torch

import mbq_kernels as mbq

QUOTIENTS, ZERO_POINTS = ("reciprocal", "division"), ("integer", "before_rounding", "after_rounding")
MASKS = ("code", "position", "none")
FORMS = [form for form in itertools.product(QUOTIENTS, ZERO_POINTS, MASKS, (False, True))
         if form != ("reciprocal", "integer", "code", False)]
forms = pytest.mark.parametrize("quotient, zero_point_form, mask, grad_product", FORMS,
                                ids=["-".join(map(str, form)) for form in FORMS])


class RoundSte(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class ClampSte(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lo, hi):
        return torch.clamp(x, lo, hi)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


def written_out(x, scale, zero_point, lo, hi, quotient, zero_point_form, mask):
    """Return the eager expression, whose autograd is the oracle."""
    if zero_point_form == "integer":
        zero_point = RoundSte.apply(zero_point)
    q = x / scale if quotient == "division" else x * (1.0 / scale)
    clamp = ClampSte.apply if mask == "none" else torch.clamp
    if mask == "position":
        position = clamp(q + zero_point, lo, hi)
        level = torch.round(q + zero_point) if zero_point_form == "before_rounding" else torch.round(q) + zero_point
        code = position + (level.clamp(lo, hi) - position).detach()
        code = code + (level.clamp(lo, hi) - code).detach()  # exactly
    elif zero_point_form == "before_rounding":
        code = clamp(RoundSte.apply(q + zero_point), lo, hi)
    else:
        code = clamp(RoundSte.apply(q) + zero_point, lo, hi)
    return (code - zero_point) * scale


def inputs(shape, axis, zero_point_form, device):
    torch.manual_seed(0)
    x = torch.randn(shape, device=device) * 2
    channels = 1 if axis is None else shape[axis]
    scale = torch.rand(channels, device=device) * 0.2 + 0.2
    flat = x.view(-1)
    flat[:40] = (torch.arange(-20, 20, device=device) + 0.5) * scale[0]  # ties
    flat[40:80] = torch.arange(-20, 20, device=device) * scale[0]  # edges
    zero_point = torch.randint(-3, 4, (channels,), device=device).float()
    if zero_point_form != "integer":
        zero_point += torch.rand(channels, device=device) - 0.5
    return x, scale, zero_point


@forms
@pytest.mark.parametrize("shape, axis", [((700,), None), ((5, 330), 0), ((6, 4, 50), 1)], ids=str)
def test_is_the_expression_written_out(device, shape, axis, quotient, zero_point_form, mask, grad_product):
    x, scale, zero_point = inputs(shape, axis, zero_point_form, device)
    leaves = [t.clone().requires_grad_() for t in (x, scale, zero_point)]
    ours = mbq.fake_quantize_affine(*leaves, quant_min=-8, quant_max=7, axis=axis, quotient=quotient,
                                    zero_point_form=zero_point_form, mask=mask, grad_product=grad_product)
    theirs = [t.clone().cpu().requires_grad_() for t in (x, scale, zero_point)]
    broad = [oracles.spread(t, theirs[0], axis) for t in theirs[1:]]
    wanted = written_out(theirs[0], *broad, -8, 7, quotient, zero_point_form, mask)
    oracles.assert_same(ours, wanted.detach())
    grad = torch.randn(shape)
    actual = torch.autograd.grad(ours, leaves, grad.to(device))
    expected = torch.autograd.grad(wanted, theirs, grad)
    passed = expected[0] if grad_product else torch.where(expected[0] == 0, 0, grad)
    oracles.assert_same(actual[0], passed, "grad x")
    for one, other, name in zip(actual[1:], expected[1:], ("scale", "zero_point"), strict=True):
        size = 2e-6 * grad.abs().sum() * 20
        oracles.assert_within(one, other.reshape(one.shape).double(), size, f"grad {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_special_values(device, backend, dtype):
    if dtype == torch.float64 and backend == "triton":
        pytest.skip("Triton kernels have no float64")
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-30], device=device, dtype=dtype)
    for form in FORMS:
        leaves = [x.clone().requires_grad_(), torch.ones(1, device=device), torch.zeros(1, device=device)]
        out = mbq.fake_quantize_affine(*leaves, quant_min=-8, quant_max=7, quotient=form[0], zero_point_form=form[1],
                                       mask=form[2], grad_product=form[3])
        assert out[:2].tolist() == [7, -8] and out[2].isnan() and out[3:].tolist() == [0, 0, 0]
        (grad_x,) = torch.autograd.grad(out, leaves[0], torch.ones_like(out))
        clipped = 1.0 if form[2] == "none" else 0.0
        assert grad_x.tolist() == [clipped, clipped, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("changes, message", [
    ({"quotient": "divide"}, "quotient must be 'reciprocal' or 'division', got 'divide'"),
    ({"zero_point_form": None}, "zero_point_form must be 'integer' or 'before_rounding' or 'after_rounding', got None"),
    ({"mask": "value"}, "mask must be 'code' or 'position' or 'none', got 'value'"),
])
def test_errors(changes, message):
    with pytest.raises(ValueError, match="^fake_quantize_affine: " + message):
        mbq.fake_quantize_affine(torch.ones(3), torch.ones(1), torch.zeros(1), quant_min=0, quant_max=3, **changes)
    with pytest.raises(TypeError, match="grad_product must be True or False, got 1"):
        mbq.fake_quantize_affine(torch.ones(3), torch.ones(1), torch.zeros(1), quant_min=0, quant_max=3, grad_product=1)
