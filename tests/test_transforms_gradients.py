"""Every op with a gradient under torch.func, double backward, autocast and CUDA graphs."""

import pytest
import torch
from manifest import MANIFEST
from torch.autograd import forward_ad

import mbq_kernels as mbq
from mbq_kernels.ops._function import BackwardFunction

every_op = pytest.mark.parametrize("op", [op.name for op in MANIFEST.values() if op.differentiable])


@pytest.fixture
def call(op):
    return MANIFEST[op].call


@pytest.fixture
def inputs(op, device):
    return MANIFEST[op].data.make(device)


@every_op
def test_func_grad(device, call, inputs):
    x, scale = inputs
    loss = lambda x, scale: call(x, scale).square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(x, scale), (x, scale))
    actual = torch.func.grad(loss, argnums=(0, 1))(x.detach(), scale.detach())
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


@every_op
def test_vmap_of_grad_is_a_loop_over_samples(device, op, call):
    (x, scale), _ = MANIFEST[op].data.batch(device)
    loss = lambda x, scale: call(x, scale).square().sum()  # noqa: E731
    for dim in (0, 2):
        moved = x.movedim(0, dim)
        actual = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(dim, None))(moved, scale)
        for i in range(3):
            expected = torch.func.grad(loss, argnums=(0, 1))(x[i], scale)
            torch.testing.assert_close(actual[0][i], expected[0], rtol=0, atol=0)
            torch.testing.assert_close(actual[1][i], expected[1])


@every_op
def test_double_backward_is_an_error(device, call, inputs):
    x, scale = inputs
    (grad,) = torch.autograd.grad(call(x, scale).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.func.jacrev(torch.func.grad(lambda x: call(x, scale.detach()).square().sum()))(x.detach())


@every_op
def test_a_backward_is_a_function_only_where_a_graph_is_wanted(device, call, inputs, monkeypatch):
    x, scale = inputs
    functions = []
    monkeypatch.setattr(BackwardFunction, "setup_context", staticmethod(lambda *args: functions.append(args)))
    plain = torch.autograd.grad(call(x, scale).square().sum(), (x, scale))
    assert not functions
    graph = torch.autograd.grad(call(x, scale).square().sum(), (x, scale), create_graph=True)
    assert functions and torch.equal(plain[0], graph[0]) and torch.equal(plain[1], graph[1])


@every_op
def test_forward_mode_is_an_error_where_nothing_needs_a_gradient(device, call, inputs):
    x, scale = (tensor.detach() for tensor in inputs)
    expected = call(*inputs)
    assert torch.equal(call(x, scale), expected)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="implement the jvp function"):
        call(forward_ad.make_dual(x, torch.ones_like(x)), scale)


@every_op
def test_autocast_leaves_dtypes_alone(device, call, inputs):
    x, scale = inputs
    with torch.autocast(device, dtype=torch.bfloat16):
        out = call(x, scale)
    assert out.dtype == torch.float32 and torch.equal(out, call(x, scale))


def test_float_weight_becomes_bfloat16_in_one_pass_under_autocast(device, inputs):
    x, scale = inputs
    with torch.autocast(device, dtype=torch.bfloat16):
        out = mbq.fake_quantize(x, scale, bits=4, axis=0, out_dtype=torch.get_autocast_dtype(device))
        out.sum().backward()
    assert out.dtype == torch.bfloat16 and x.grad.dtype == torch.float32


@every_op
def test_cuda_graph(device, call, inputs):
    if device != "cuda":
        pytest.skip("CUDA graphs need a CUDA device")
    x, scale = inputs
    static = x.detach().clone()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # warm-up off the default stream, as capture wants
        for _ in range(3):
            call(static.requires_grad_(), scale).sum().backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    leaf = static.detach().requires_grad_()
    with torch.cuda.graph(graph):
        out = call(leaf, scale)
        grads = torch.autograd.grad(out.square().sum(), (leaf, scale))
    with torch.no_grad():
        leaf.copy_(torch.randn_like(leaf))
    graph.replay()
    expected = call(leaf, scale)
    assert torch.equal(out, expected)
    assert torch.equal(grads[1], torch.autograd.grad(expected.square().sum(), scale)[0])
