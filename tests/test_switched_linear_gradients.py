"""Gradients of switched_linear in x, scale and bias, against float64."""

import pytest
import torch
import torch.nn.functional as F
from test_switched_linear import LAYOUTS, ROUNDINGS, exact, lowered, make, stored

import mbq_kernels as mbq

OP = "switched_linear"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 33, 70), (3, 35, 530), (66, 5, 9)], ids=str)
def test_gradients(device, layout, rounding, shape):
    x, codes, scale, bias = make(*shape)
    store = stored(codes, layout).to(device)
    upstream = torch.randn(shape[0], shape[1])
    for bits in (8, 3):
        leaves = [t.to(device).requires_grad_() for t in (x, scale, bias)]
        y = mbq.switched_linear(leaves[0], store, *leaves[1:], bits=bits, rounding=rounding)
        grads = torch.autograd.grad(y, leaves, upstream.to(device))
        wide = [t.double().requires_grad_() for t in (x, scale, bias)]
        weight = lowered(codes, 8, bits, rounding) * wide[1].view(-1, 1) * 2 ** (8 - bits)
        expected = torch.autograd.grad(F.linear(wide[0], weight, wide[2]), wide, upstream.double())
        for grad, want in zip(grads, expected, strict=True):
            assert (grad.cpu().double() - want).abs().max() <= 2e-6 * max(1, want.abs().max())


def test_gradient_of_low_precision_x(device):
    x, codes, scale, _ = (t.to(device) for t in make(3, 40, 70, dtype=torch.bfloat16))
    x.requires_grad_()
    mbq.switched_linear(x, codes, scale, bits=4).sum().backward()
    want = exact(x.detach().cpu(), codes.cpu(), scale.cpu(), None, 8, 4, "half_up")[1].sum(0)
    assert x.grad.dtype == torch.bfloat16
    assert (x.grad.cpu().double() - want).abs().max() <= 2**-8 * want.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_the_scale_is_summed_in_no_storage_type(device, layout, dtype):
    """Its terms are the outputs of a layer with scale 1: beyond float16's range, and 8 bits are not enough of them."""
    codes, x = torch.full((2, 136), 127, dtype=torch.int8), torch.full((2, 136), 4.0, dtype=dtype)
    codes[1, ::3], x[1] = -5, torch.arange(136) % 13 / 8
    unit = x.double() @ codes.double().T
    assert unit.max() > torch.finfo(torch.float16).max
    for shape in ((2,), ()):
        scale = torch.full(shape, 1e-3, device=device, requires_grad=True)
        bias = torch.zeros(2, device=device, requires_grad=True)
        mbq.switched_linear(x.to(device), stored(codes, layout).to(device), scale, bias, bits=8).sum().backward()
        want = unit.sum(0) if shape else unit.sum()
        torch.testing.assert_close(scale.grad.cpu().double(), want, rtol=1e-6, atol=0)
        assert torch.equal(bias.grad.cpu(), torch.full((2,), 2.0))


def test_the_gradient_of_the_scale_beyond_float16(device):
    codes, x = torch.full((1, 1024), 127, dtype=torch.int8), torch.ones(1, 1024, dtype=torch.float16)
    scale = torch.tensor([1e-3], device=device, requires_grad=True)
    mbq.switched_linear(x.to(device), codes.to(device), scale, bits=8).sum().backward()
    assert scale.grad.item() == 130048
