"""redirect: functional calls of torch and torchao through fused kernels, bit for bit, and all as it was afterwards."""

import threading
from functools import partial

import pytest
import torch

import mbq_kernels
from mbq_train import redirect

ROWS, COLUMNS = 64, 1024
INT = torch.int32


def scales(*shape):
    return 0.01 + 0.05 * torch.rand(*shape)


def ints(value, *shape):
    return torch.full(shape, value, dtype=INT)


CHANNELS = {"scale": scales(COLUMNS), "zero_point": ints(2, COLUMNS), "axis": 1, "quant_min": -8, "quant_max": 7}
TORCH = {
    "tensor-numbers": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.037, 3, -8, 7),
    "tensor": lambda x: torch.fake_quantize_per_tensor_affine(x, torch.tensor([0.037]), ints(3, 1), -8, 7),
    "channels": lambda x: torch.fake_quantize_per_channel_affine(x, scales(ROWS), ints(2, ROWS), 0, -8, 7),
    "channels-keywords": lambda x: torch.fake_quantize_per_channel_affine(x, **CHANNELS),
    "learnable-tensor": lambda x: torch._fake_quantize_learnable_per_tensor_affine(
        x, torch.tensor([0.0625]), torch.tensor([2.5]), -8, 7, 0.3),
    "learnable-channels": lambda x: torch._fake_quantize_learnable_per_channel_affine(
        x, torch.full((ROWS,), 0.0625), torch.full((ROWS,), 2.5), 0, -8, 7),
}


def torchao_calls():
    from torchao.quantization.qat.fake_quantizer import _fake_quantize_affine as affine
    from torchao.quantization.qat.utils import _fake_quantize_per_channel_group as group
    from torchao.quantization.qat.utils import _fake_quantize_per_token as token

    return {
        "group": lambda x: group(x, scales(ROWS, 32), ints(0, ROWS, 32), -8, 7, 32),
        "token": lambda x: token(x, scales(ROWS, 1), ints(3, ROWS, 1).long(), -128, 127),
        "columns": lambda x: affine(x, (ROWS, 1), scales(COLUMNS), ints(1, COLUMNS), torch.int8, -8, 7),
        "tensor": lambda x: affine(x, block_size=x.shape, scale=torch.tensor(0.04), zero_point=ints(1, 1),
                                   quant_dtype=torch.int8, quant_min=-8, quant_max=7),
    }


@pytest.fixture
def calls(monkeypatch):
    """Count calls of the kernels."""
    seen = []
    real = mbq_kernels.fake_quantize_affine
    for module in ("torch_ao.arithmetic", "torch_ao.per_tensor", "torch_ao.learnable_affine", "torchao_affine"):
        monkeypatch.setattr(f"mbq_train.drop_in.{module}.fake_quantize_affine",
                            lambda *args, **kwargs: seen.append(1) or real(*args, **kwargs))
    return seen


def seeded(function, x):
    torch.manual_seed(3)
    return function(x)


def assert_routed(function, calls, routed=True, x=None):
    x = torch.round(torch.randn(ROWS, COLUMNS) * 64) / 64 if x is None else x
    x.requires_grad_()
    expected, grad = seeded(function, x), torch.randn(x.shape).to(x.dtype)
    assert not calls
    with redirect():
        out = seeded(function, x)
    assert bool(calls) is routed
    assert out.dtype == expected.dtype and out.stride() == expected.stride() and torch.equal(out, expected)
    assert torch.equal(torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(expected, x, grad)[0])


@pytest.mark.parametrize("name", TORCH)
def test_torch(name, calls):
    assert_routed(TORCH[name], calls)


@pytest.mark.parametrize("name", ["group", "token", "columns", "tensor"])
def test_torchao(name, calls):
    pytest.importorskip("torchao")
    assert_routed(torchao_calls()[name], calls)


def test_torchao_with_a_learned_scale_goes_through(calls):
    pytest.importorskip("torchao")
    from torchao.quantization.quant_primitives import _fake_quantize_affine as affine
    scale = scales(ROWS).requires_grad_()
    assert_routed(lambda x: affine(x, (1, COLUMNS), scale, ints(0, ROWS), torch.int8, -8, 7), calls, routed=False)


@pytest.mark.parametrize("case", ["small", "float-zero-point", "float64"])
def test_goes_through(case, calls):
    x = torch.randn(4, 4) if case == "small" else torch.randn(ROWS, COLUMNS)
    function = TORCH["tensor"]
    if case == "float-zero-point":
        function = partial(torch.fake_quantize_per_channel_affine, scale=scales(ROWS),
                           zero_point=torch.full((ROWS,), 0.5), axis=0, quant_min=0, quant_max=15)
    assert_routed(function, calls, routed=False, x=x.double() if case == "float64" else x)


def test_errors_are_torchs():
    x = torch.randn(ROWS, COLUMNS)
    for function in (lambda: torch.fake_quantize_per_tensor_affine(x, 0.1, 9, -8, 7),
                     lambda: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 7, -8),
                     lambda: torch.fake_quantize_per_channel_affine(x, scales(3), ints(0, 3), 0, -8, 7),
                     lambda: torch.fake_quantize_per_tensor_affine(x)):
        with pytest.raises((RuntimeError, TypeError)) as expected:
            function()
        with redirect(), pytest.raises(expected.type):
            function()


def test_nested_and_left_by_an_error(calls):
    x, function = torch.randn(ROWS, COLUMNS), TORCH["tensor"]
    with redirect():
        with pytest.raises(KeyError), redirect():
            raise KeyError
        function(x)
        assert len(calls) == 1
    function(x)
    assert len(calls) == 1


def test_torchao_is_as_before_after_overlapping_contexts(calls):
    """Another thread, in a context of its own or in none, sees torchao as it would alone."""
    pytest.importorskip("torchao")
    from torchao.quantization import quant_primitives
    function, code = torchao_calls()["token"], quant_primitives._fake_quantize_affine.__code__
    x = torch.randn(ROWS, COLUMNS)

    def elsewhere(work):
        thread = threading.Thread(target=work)
        thread.start()
        return thread

    with redirect():
        elsewhere(lambda: function(x)).join()
        assert not calls
        entered, leave = threading.Event(), threading.Event()

        def overlap():
            with redirect():
                entered.set()
                leave.wait(10)
                function(x)

        thread = elsewhere(overlap)
        assert entered.wait(10)
    function(x)
    assert not calls
    leave.set()
    thread.join()
    assert len(calls) == 1 and quant_primitives._fake_quantize_affine.__code__ is code


def test_compiled():
    x = torch.randn(ROWS, COLUMNS)
    compiled = torch.compile(TORCH["tensor-numbers"], backend="eager", fullgraph=True)
    with redirect():
        assert torch.equal(compiled(x), TORCH["tensor-numbers"](x))
