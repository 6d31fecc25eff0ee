"""The CUDA loops of the ops on least significant bits, run on the host: everything but warps and launches."""

import ctypes

import oracles
import pytest
import torch
from running import host_library
from test_cuda_on_host import SHAPES
from test_round_clamp import forms

import mbq_kernels as mbq

I64, PTR, INT, BOOL = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_bool
POINTERS = ["x", "to", "grad", "grad_x", "limit", "grad_penalty", "counts"]


class Arguments(ctypes.Structure):
    _fields_ = [*((name, PTR) for name in POINTERS), ("outer", I64), ("channels", I64), ("inner", I64), ("bits", INT),
                ("k", INT), ("lanes", INT), ("aligned", BOOL), ("sign_magnitude", BOOL), ("unit_gradient", BOOL)]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_library("cuda_lsb_on_host", tmp_path_factory)


class Run:
    """One x of (outer, channels, inner) in memory with its limits, as the kernels get it."""

    def __init__(self, host, shape, dtype, lanes, aligned, bits, k, form):
        self.host, self.shape, self.numbers = host, shape, (bits, k, lanes, aligned, form == "sign-magnitude")
        self.dtype = str(dtype).removeprefix("torch.")
        self.x, self.grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        self.limit = self.x.float().abs().amax((0, 2))
        self.options = {"bits": bits, "limit": self.limit, "axis": 1, "form": form}

    def __call__(self, kernel, to, unit_gradient=False, grad_penalty=0.75):
        counts, penalty = torch.zeros(2, dtype=torch.int64), torch.tensor(grad_penalty)
        tensors = (self.x, to, self.grad, to, self.limit, penalty, counts)
        arguments = Arguments(*(PTR(t.data_ptr()) for t in tensors), *self.shape, *self.numbers, unit_gradient)
        getattr(self.host, f"{kernel}_{self.dtype}")(ctypes.byref(arguments))
        return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lanes, aligned", [(1, True), (32, True), (32, False)])
@pytest.mark.parametrize("bits, k", [(8, 1), (4, 3)])
@forms
def test_lsb(host, shape, dtype, lanes, aligned, bits, k, form):
    run = Run(host, shape, dtype, lanes, aligned, bits, k, form)
    value, residual = torch.full_like(run.x, torch.nan), torch.full(shape, 99, dtype=torch.int8)
    run("round_clamp", value)
    oracles.assert_same(value, mbq.round_clamp(run.x, **run.options))
    run("extract_lsb", residual)
    oracles.assert_same(residual, mbq.extract_lsb(run.x, k=k, **run.options))
    sums = [residual.int().abs().sum().item(), (residual != 0).sum().item()]
    fused = torch.full_like(run.x, torch.nan)
    assert run("lsb_penalty", fused).tolist() == run("round_clamp_lsb", fused).tolist() == sums
    oracles.assert_same(fused, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lanes, aligned, unit_gradient", [(1, True, False), (32, True, True), (32, False, False)])
@forms
def test_gradients(host, shape, dtype, lanes, aligned, unit_gradient, form):
    run = Run(host, shape, dtype, lanes, aligned, 5, 2, form)
    leaf = run.x.clone().requires_grad_()
    value, penalty, _ = mbq.round_clamp_lsb(leaf, k=2, unit_gradient=unit_gradient, **run.options)
    for kernel, grad in (("lsb_penalty_backward", torch.zeros_like(run.x)), ("round_clamp_lsb_backward", run.grad)):
        actual = torch.full_like(run.x, torch.nan)
        run(kernel, actual, unit_gradient)
        (wanted,) = torch.autograd.grad((value, penalty), leaf, (grad, torch.tensor(0.75)), retain_graph=True)
        oracles.assert_same(actual, wanted, kernel)
