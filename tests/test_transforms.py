"""Every public op under torch.compile, torch.export, vmap and any number of threads."""

import pytest
import torch
from manifest import MANIFEST
from manifest.entry import SAMPLES
from running import threads
from torch._dynamo.testing import CompileCounterWithBackend

import mbq_kernels as mbq

every_op = pytest.mark.parametrize("op", MANIFEST)


def ops(wanted):
    return pytest.mark.parametrize("op", [op.name for op in MANIFEST.values() if wanted(op)])


def tensors(result):
    return (result,) if isinstance(result, torch.Tensor) else result


def same(one, other):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def constants(entry, device, *size):
    return tuple(t.detach() for t in entry.data.make(device, *size))


@every_op
def test_compile_fullgraph(device, op):
    call, inputs = MANIFEST[op].call, MANIFEST[op].data.make(device)
    compiled = torch.compile(call, fullgraph=True)
    if MANIFEST[op].differentiable:
        grads = [torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (call, compiled)]
        assert same(*grads)
    assert same(compiled(*inputs), call(*inputs))
    with torch.no_grad():
        assert same(compiled(*inputs), call(*inputs))


@ops(lambda op: op.bits)
def test_bits_change_without_recompiling(device, op):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(MANIFEST[op].call, fullgraph=True, backend=counter)
    inputs = constants(MANIFEST[op], device)
    for bits in MANIFEST[op].bits:
        assert same(compiled(*inputs, bits), MANIFEST[op].call(*inputs, bits))
    assert counter.frame_count <= 2


@ops(lambda op: not op.differentiable)
def test_shapes_change_without_recompiling(device, op):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(MANIFEST[op].call, fullgraph=True, backend=counter, dynamic=True)
    for size in (33, 34, 47, 64):
        inputs = constants(MANIFEST[op], device, size)
        assert same(compiled(*inputs), MANIFEST[op].call(*inputs))
    assert counter.frame_count <= 2


@every_op
def test_export(device, op):
    class Module(torch.nn.Module):
        def forward(self, first, second):
            return MANIFEST[op].call(first, second)

    inputs = constants(MANIFEST[op], device)
    for strict in (False, True):
        exported = torch.export.export(Module(), inputs, strict=strict)
        assert "mbq" in str(exported.graph)
        assert same(exported.module()(*inputs), MANIFEST[op].call(*inputs))


@ops(lambda op: not op.differentiable)
def test_vmap_is_a_loop(device, op):
    inputs, dims = MANIFEST[op].data.batch(device)
    each = [MANIFEST[op].call(*(t if dim is None else t[i] for t, dim in zip(inputs, dims, strict=True)))
            for i in range(3)]
    stacked = [torch.stack(column) for column in zip(*map(tensors, each), strict=True)]
    assert same(torch.func.vmap(MANIFEST[op].call, in_dims=dims)(*inputs), stacked)


@ops(lambda op: op.data is not SAMPLES)
def test_results_and_gradients_repeat_whatever_the_threads(device, backend, op):
    interpreted = backend == "triton" and device == "cpu"  # where only the sums behind a kernel have threads
    inputs = MANIFEST[op].data.make(device, 411 if interpreted else 40011)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            result = tensors(MANIFEST[op].call(*inputs))
            grads = torch.autograd.grad(result, inputs, result) if MANIFEST[op].differentiable else ()
            found.append((*result, *grads))
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_compile_takes_scales_in_any_layout(device):
    x, scales = torch.randn(5, 7, device=device), torch.rand(7, 3, device=device).add(0.1).t().requires_grad_()
    f = lambda x, s: sum(t.square().sum() for t in mbq.fake_quantize_multi(x, s, bits=[2, 3, 4], axis=1))  # noqa: E731
    expected = torch.autograd.grad(f(x, scales), scales)[0]
    assert torch.equal(torch.autograd.grad(torch.compile(f, fullgraph=True)(x, scales), scales)[0], expected)
