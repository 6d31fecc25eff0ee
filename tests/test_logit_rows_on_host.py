"""The CUDA loops of el2n and cross_entropy_el2n, run on the host: everything but warps and launches."""

import ctypes
import functools

import logits_oracle as oracle
import oracles
import pytest
import torch
from running import host_library

PTR, I64 = ctypes.c_void_p, ctypes.c_int64


class Arguments(ctypes.Structure):
    _fields_ = [*((name, PTR) for name in ("x", "targets", "grad", "loss", "el2n", "grad_x")), ("rows", I64),
                ("classes", I64), ("smoothing", ctypes.c_float), ("lanes", ctypes.c_int), ("aligned", ctypes.c_bool)]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_library("logit_rows_on_host", tmp_path_factory)


def run(host, logits, targets, grad, smoothing=0.0, lanes=32, aligned=True):
    """Return (loss, el2n, the gradient of the logits, 0 in every third row, which does not count)."""
    loss, norms, grad_x = torch.full_like(grad, 9.0), torch.full_like(grad, 9.0), torch.full_like(logits, 9.0)
    pointers = (t.data_ptr() for t in (logits, targets, grad, loss, norms, grad_x))
    name = f"logit_rows_{str(logits.dtype).removeprefix('torch.')}"
    getattr(host, name)(ctypes.byref(Arguments(*pointers, *logits.shape, smoothing, lanes, aligned)))
    return loss, norms, grad_x


@functools.cache
def rows_of(dtype, classes, spread, smoothing):
    """Return (logits, targets, what they give): the oracle takes its time."""
    logits = ((torch.rand(3, classes) * 2 - 1) * spread).to(dtype)
    targets = torch.tensor([0, classes - 1, classes // 3])
    return logits, targets, oracle.rows(logits, targets, smoothing=smoothing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes, spread", [(1, 1.0), (2, 80.0), (10, 8.0), (257, 8.0), (264, 1.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lanes, aligned", [(1, True), (32, True), (32, False)])
def test_rows(host, dtype, classes, spread, smoothing, lanes, aligned):
    logits, targets, (want_loss, want_norms, gaps) = rows_of(dtype, classes, spread, smoothing)
    grad = torch.randn(3)
    loss, norms, grad_x = run(host, logits, targets, grad, smoothing, lanes, aligned)
    oracle.close(loss, want_loss)
    oracle.close(norms, want_norms, absolute=1e-37 if smoothing == 0 else 1e-7 * smoothing)
    expected = gaps * grad.double().unsqueeze(1)
    expected[2::3] = 0
    rounding = (torch.finfo(dtype).eps + 4e-6) * expected.abs() + torch.finfo(dtype).smallest_normal
    oracles.assert_within(grad_x, expected, rounding + 1e-7 * smoothing * grad.abs().max(), "grad logits")


def test_rows_with_infinities_and_nan(host):
    logits = torch.randn(5, 40)
    logits[0, 7], logits[1, 3], logits[2, 0] = torch.nan, torch.inf, -torch.inf
    logits[3, 1:] = -torch.inf
    targets = torch.tensor([3, 3, 0, 0, 39])
    loss, norms, _ = run(host, logits, targets, torch.ones(5))
    assert loss.isnan().tolist() == norms.isnan().tolist() == [True, True, False, False, False]
    assert loss[2] == torch.inf and (loss[3], norms[3]) == (0, 0)
    oracle.close(norms[4:], oracle.rows(logits[4:], targets[4:])[1])
