"""fake_quantize_dynamic against a written-out oracle in float64 and against torchao."""

import math

import oracles
import pytest
import torch

import mbq_kernels as mbq

HALVES = [torch.float32, torch.bfloat16, torch.float16]
RANGES = [(-128, 127, False), (-8, 7, False), (0, 15, False), (-128, 127, True), (-8, 7, True), (0, 15, True)]
RANGE_IDS = [f"{lo}_{hi}_{'symmetric' if symmetric else 'asymmetric'}" for lo, hi, symmetric in RANGES]
SIZES = [1, 7, 32, 33, 128, 1024, 1025, 2500]
every_range = pytest.mark.parametrize("lo, hi, symmetric", RANGES, ids=RANGE_IDS)


def rounded(value, dtype):
    return value.to(torch.float32).to(dtype).double()


def oracle(x, lo, hi, symmetric):
    """Return (x_hat, scale, zero point, which are inside) of rows: float64, rounded where the definition says so."""
    dtype, x = x.dtype, x.double()
    eps, zero = torch.finfo(dtype).smallest_normal, torch.zeros(len(x), 1, dtype=torch.float64)
    least, greatest = (torch.cat([x, zero], 1).sort(1).values[:, [place]] for place in (0, -1))
    if symmetric:
        scale = rounded(torch.maximum(-least, greatest) / ((hi - lo) / 2), dtype).clamp(min=eps)
        zero_point = torch.full_like(scale, int((hi + lo + 1) / 2))
    else:
        scale = rounded(rounded(greatest - least, dtype) / (hi - lo), dtype).clamp(min=eps)
        zero_point = (lo - rounded(least / scale, dtype).round()).clamp(lo, hi)
    codes = rounded(x * rounded(1 / scale, torch.float32), torch.float32).round() + zero_point
    kept = codes.clamp(lo, hi)
    return rounded((kept - zero_point) * scale, dtype).to(dtype), scale[:, 0], zero_point[:, 0], codes == kept


def rows_of(dtype, size, rows=5):
    x = torch.randn(rows, size) * torch.tensor([1.0, 1e-3, 300.0, 1.0, 1.0])[:rows, None]
    x[3] = x[3].abs() + 1  # 0 is not between
    x[4] = 0
    return x.to(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@every_range
def test_codes_and_gradients(device, dtype, lo, hi, symmetric):
    for size in SIZES:
        x = rows_of(dtype, size).to(device).requires_grad_()
        grad = torch.randn(x.shape, device=device).to(dtype)
        x_hat, scale, zero_point = mbq.fake_quantize_dynamic(x, quant_min=lo, quant_max=hi, symmetric=symmetric)
        actual, = torch.autograd.grad(x_hat, x, grad)
        want, wanted_scale, wanted_zero_point, inside = oracle(x.detach().cpu(), lo, hi, symmetric)
        assert torch.equal(scale.cpu().double(), wanted_scale)
        assert torch.equal(zero_point.cpu().double(), wanted_zero_point)
        oracles.assert_same(x_hat.cpu(), want)
        oracles.assert_same(actual.cpu(), torch.where(inside, grad.cpu(), 0))
        assert not scale.requires_grad and not zero_point.requires_grad


def test_gradient_as_a_product(device):
    x, grad = torch.randn(4, 40, device=device, requires_grad=True), torch.randn(4, 40, device=device)
    x_hat, scale, _ = mbq.fake_quantize_dynamic(x, quant_min=-2, quant_max=1, symmetric=True, grad_product=True)
    actual, = torch.autograd.grad(x_hat, x, grad)
    inside = (x * (1 / scale)[:, None]).round().clamp(-2, 1) == (x * (1 / scale)[:, None]).round()
    assert 0 < inside.sum() < inside.numel()
    oracles.assert_same(actual, torch.where(inside, grad * scale[:, None] * (1 / scale)[:, None], 0))


def test_groups_are_rows(device):
    x = torch.randn(3, 2, 96, device=device)
    x_hat, scale, zero_point = mbq.fake_quantize_dynamic(x, quant_min=-8, quant_max=7, group_size=32)
    rows = mbq.fake_quantize_dynamic(x.reshape(18, 32), quant_min=-8, quant_max=7)
    assert scale.shape == zero_point.shape == (3, 2, 3) and x_hat.shape == x.shape
    for one, other in zip((x_hat, scale, zero_point), rows, strict=True):
        assert torch.equal(one.flatten(), other.flatten())


@pytest.mark.parametrize("size", [40, 1500])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("at", [0, 39])
@pytest.mark.parametrize("symmetric", [False, True])
def test_nan_and_infinities_spoil_their_row(device, size, odd, at, symmetric):
    x = torch.randn(3, size, device=device)
    x[1, at] = odd
    x.requires_grad_()
    x_hat, scale, _ = mbq.fake_quantize_dynamic(x, quant_min=-128, quant_max=127, symmetric=symmetric)
    grad, = torch.autograd.grad(x_hat.sum(), x)
    assert x_hat[1].isnan().all() and not scale[1].isfinite() and grad.isfinite().all()
    assert x_hat[[0, 2]].isfinite().all()


def test_shapes(device):
    def run(x, **options):
        return mbq.fake_quantize_dynamic(x, quant_min=-128, quant_max=127, **options)

    x = torch.randn(40, 6, device=device).mT
    assert torch.equal(run(x)[0], run(x.contiguous())[0])
    assert run(torch.randn(9, device=device))[1].shape == ()
    assert run(torch.empty(0, 4, device=device))[0].shape == (0, 4)
    assert run(torch.empty(0, 8, device=device), group_size=4)[1].shape == (0, 2)


@pytest.mark.parametrize("error, message, options", [
    (ValueError, "group_size must divide the last axis of x, which has shape (4, 48), got 32", {"group_size": 32}),
    (TypeError, "group_size must be an integer or None, got 1.5", {"group_size": 1.5}),
    (ValueError, "eps must be finite and > 0, got 0", {"eps": 0}),
    (TypeError, "eps must be a number or None, got 'a'", {"eps": "a"}),
    (TypeError, "symmetric must be True or False, got 1", {"symmetric": 1}),
    (ValueError, "quant_min must be less than quant_max, got 7 and 7", {"quant_min": 7})],
    ids=["group_size", "type of group_size", "eps", "type of eps", "symmetric", "range"])
def test_errors(error, message, options):
    with pytest.raises(error) as raised:
        mbq.fake_quantize_dynamic(torch.ones(4, 48), **{"quant_min": -8, "quant_max": 7, **options})
    assert str(raised.value) == f"fake_quantize_dynamic: {message}"


def test_no_elements_in_a_row():
    with pytest.raises(ValueError, match="x must have a last axis with elements, got shape"):
        mbq.fake_quantize_dynamic(torch.ones(4, 0), quant_min=-8, quant_max=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["per_token", "per_channel", "group"])
def test_as_torchao(device, dtype, kind):
    pytest.importorskip("torchao")
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

    group_size = 32 if kind == "group" else None
    config = (IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=True) if group_size else
              IntxFakeQuantizeConfig(torch.int8, kind, is_symmetric=kind == "per_channel"))
    lo, hi = (-8, 7) if group_size else (-128, 127)
    x, grad = rows_of(dtype, 2560).requires_grad_(), torch.randn(5, 2560).to(dtype)
    theirs = IntxFakeQuantizer(config)
    want = theirs(x)
    mine = x.detach().to(device).requires_grad_()
    x_hat, scale, zero_point = mbq.fake_quantize_dynamic(
        mine, quant_min=lo, quant_max=hi, symmetric=kind != "per_token", group_size=group_size, grad_product=True)
    actual = torch.autograd.grad(x_hat, mine, grad.to(device))[0].cpu()
    x_hat, scale, zero_point = x_hat.cpu(), scale.cpu(), zero_point.cpu()
    assert torch.equal(x_hat, want) and torch.equal(scale.flatten(), theirs.scale.flatten())
    assert torch.equal(zero_point.flatten(), theirs.zero_point.flatten().float())
    wanted, = torch.autograd.grad(want, x, grad)
    if dtype == torch.float32:
        assert torch.equal(actual, wanted)
    else:  # torchao rounds the first product to bfloat16; the last row, of zeros, has a scale that makes it subnormal
        oracles.assert_within(actual[:4], wanted[:4].double(), torch.finfo(dtype).eps * 1.5 * wanted[:4].abs(), "x")
