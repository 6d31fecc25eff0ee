"""The CUDA loops of the ops on least significant bits, run on the host: everything but warps and launches."""

import ctypes

import oracles
import pytest
import torch
from running import host_library
from test_cuda_on_host import SHAPES
from test_round_clamp import forms

import mbq_kernels as mbq
from mbq_kernels.reference import quant_math

I64, PTR, INT, BOOL = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_bool
POINTERS = ["x", "to", "grad", "grad_x", "limit", "grad_penalty", "counts"]


class Arguments(ctypes.Structure):
    _fields_ = [*((name, PTR) for name in POINTERS), ("outer", I64), ("channels", I64), ("inner", I64), ("bits", INT),
                ("k", INT), ("aligned", BOOL), ("sign_magnitude", BOOL), ("unit_gradient", BOOL)]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_library("cuda_lsb_on_host", tmp_path_factory)


class Run:
    """One x of (outer, channels, inner) in memory with its limits, as the kernels get it."""

    def __init__(self, host, shape, dtype, aligned, bits, k, form):
        self.host, self.shape, self.numbers = host, shape, (bits, k, aligned, form == "sign-magnitude")
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
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("bits, k", [(8, 1), (4, 3)])
@forms
def test_lsb(host, shape, dtype, aligned, bits, k, form):
    run = Run(host, shape, dtype, aligned, bits, k, form)
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
@pytest.mark.parametrize("aligned, unit_gradient", [(True, True), (False, False)])
@forms
def test_gradients(host, shape, dtype, aligned, unit_gradient, form):
    run = Run(host, shape, dtype, aligned, 5, 2, form)
    leaf = run.x.clone().requires_grad_()
    value, penalty, _ = mbq.round_clamp_lsb(leaf, k=2, unit_gradient=unit_gradient, **run.options)
    for kernel, grad in (("lsb_penalty_backward", torch.zeros_like(run.x)), ("round_clamp_lsb_backward", run.grad)):
        actual = torch.full_like(run.x, torch.nan)
        run(kernel, actual, unit_gradient)
        (wanted,) = torch.autograd.grad((value, penalty), leaf, (grad, torch.tensor(0.75)), retain_graph=True)
        oracles.assert_same(actual, wanted, kernel)


LIMITS = (1.0, 0.7321, 3.1e-5, 2.0**-89.5, 2.0**89.5, 0.0, 1e-40, 2.0**-100, 2.0**100, torch.inf, torch.nan, -1.0)


def around_ties(limit, bits, form):
    """x at every tie of both roundings of u = |x| / limit or (x / limit + 1) / 2, three floats around, and far off."""
    ties = torch.arange(-2, 2 ** (bits + 1) + 3) / 2 ** (bits + 1)
    x = ((ties if form == "sign-magnitude" else 2 * ties - 1) * limit).float()
    x = torch.cat([(x.view(torch.int32) + d).view(torch.float32) for d in range(-3, 4)])
    far = torch.tensor([0.0, 1e-45, 1e-38, limit * 1e-3, limit * 1.5, limit * 1e5, 3e38, torch.inf, torch.nan])
    return torch.cat([x, -x, far, -far, torch.randn(101) * limit])


@pytest.mark.parametrize("bits, k", [(8, 1), (8, 3), (3, 2)])
@forms
@pytest.mark.parametrize("grad_penalty", [-1.75, torch.inf])
def test_every_input_has_the_codes_of_division(host, bits, k, form, grad_penalty):
    """Ties, clipped values, infinities, NaN, subnormals; limits that lean arithmetic takes, and others."""
    x = torch.stack([around_ties(limit, bits, form) for limit in LIMITS])
    run = Run(host, (1, *x.shape), torch.float32, True, bits, k, form)
    run.x, run.limit = x[None], torch.tensor(LIMITS)
    limit, form_ = run.limit[:, None], quant_math.unit_form(True, form == "sign-magnitude")
    u = quant_math.within_unit(quant_math.unit_position(x, limit, form_))
    wanted = quant_math.lsb_residual(u, 2.0**bits, 2.0 ** (bits - k), 2.0**k)
    residual = torch.full(run.shape, 99, dtype=torch.int8)
    run("extract_lsb", residual)
    assert torch.equal(residual[0], wanted.char())
    value, grad_x = torch.full_like(run.x, 9.0), torch.full_like(run.x, 9.0)
    counts = [wanted.abs().sum().item(), wanted.count_nonzero().item()]
    assert run("round_clamp_lsb", value).tolist() == counts == run("lsb_penalty", value).tolist()
    signed = quant_math.round_clamp_signed(quant_math.round_clamp_code(u, 2.0**bits), x, 2.0**bits, form_)
    oracles.assert_same(value[0], signed * quant_math.round_clamp_scale(limit, 2.0**bits, form_))
    run("round_clamp_lsb_backward", grad_x, grad_penalty=grad_penalty)
    slope = quant_math.lsb_slope(torch.tensor(grad_penalty), limit, form_[0] * 2.0**bits)
    oracles.assert_same(grad_x[0], quant_math.lsb_gradient(run.grad[0], x, wanted, slope, form_))
