"""Per-sample gradient norms by autograd in float64, one sample at a time; shared by the tests of these ops."""

import ctypes
import gc
import re
from pathlib import Path

import pytest
import torch

ULP = {torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5, torch.float64: 1e-12}


def one_by_one(layer, activations, grad_outputs, weight_factor=None):
    """(N,) float64; `layer` is any module, whose own parameters are used for their shapes alone."""
    layer = layer.double()
    parameters = list(layer.parameters())
    norms = []
    for a, g in zip(activations.detach().cpu().double(), grad_outputs.detach().cpu().double(), strict=True):
        output = layer(a.unsqueeze(0))
        grads = list(torch.autograd.grad((output * g.unsqueeze(0)).sum(), parameters))
        if weight_factor is not None:
            grads[0] = grads[0] * weight_factor.detach().cpu().double()
        norms.append(sum(grad.square().sum() for grad in grads))
    return torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float64)


def parts(layer, activations, grad_outputs):
    """(N,) sum over positions of |a|^2 |g|^2, of the absolute values: what errors of Gram products are relative to"""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0)
    rows = []
    for a, g in zip(activations.detach().cpu().double(), grad_outputs.detach().cpu().double(), strict=True):
        a = a.unsqueeze(0)
        if isinstance(layer, torch.nn.Linear):
            squares, grads = a.square().sum(-1) + 1, g.square().sum(-1)
            rows.append((squares[0] * grads).sum())
            continue
        ones = type(layer)(layer.in_channels // layer.groups, 1, layer.kernel_size, layer.stride, layer.padding,
                           layer.dilation, bias=False).double()
        torch.nn.init.ones_(ones.weight)
        groups = a[0].square().view(layer.groups, -1, *a.shape[2:])
        squares = ones(groups) + 1  # (groups, 1, *outputs)
        rows.append((squares * g.square().view(layer.groups, -1, *g.shape[1:])).sum())
    return torch.stack(rows).detach()


def assert_norms(actual, layer, activations, grad_outputs, weight_factor=None, gram=False):
    """Within 1e-5 of the norm with tiles; with Gram products within 1e-6 of the sum of what they add up."""
    expected = one_by_one(layer, activations, grad_outputs, weight_factor)
    assert actual.shape == expected.shape and not actual.requires_grad
    bound = expected * ULP[activations.dtype]
    if gram:
        bound = bound + parts(layer, activations, grad_outputs) * ULP[activations.dtype] / 10
    error = (actual.cpu().double() - expected).abs()
    assert (error <= bound + 1e-30).all() and (actual >= 0).all(), (actual, expected, error / expected)


def peak_memory(call):
    """Bytes of resident memory a warm call takes beyond what the process held, as Linux counts them."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    read = lambda field: int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) * 1024  # noqa: E731
    call()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")  # the peak starts again from here
    except (OSError, AttributeError):
        pytest.skip("needs Linux and glibc to see the peak of resident memory")
    before = read("VmRSS")
    call()
    return max(0, read("VmHWM") - before)
