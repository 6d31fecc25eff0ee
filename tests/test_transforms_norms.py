"""Per-sample gradient norms, which have no gradient, under opcheck, torch.compile, torch.export and vmap."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import mbq_kernels as mbq

OP = "sample_grad_norm_linear"


def linear(a, g):
    return mbq.sample_grad_norm_linear(a.mT, g.mT)


def conv(a, g):
    """In two dimensions and in one, on positions that are pixels."""
    images = a.unsqueeze(2), g.unsqueeze(2)
    return (mbq.sample_grad_norm_conv2d(*images, kernel_size=(1, 3), padding=(0, 1))
            + mbq.sample_grad_norm_conv1d(a, g, kernel_size=3, padding=1, bias=False))


OPS = {"sample_grad_norm_linear": linear, "sample_grad_norm_conv2d": conv}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def make(device, positions=33, samples=4):
    return torch.randn(samples, 3, positions, device=device), torch.randn(samples, 5, positions, device=device)


RAW = {
    "sample_grad_norm_linear_forward": lambda a, g: (a.mT, g.mT, None, True, True),
    "sample_grad_norm_conv2d_forward":
        lambda a, g: (a.unsqueeze(2), g.unsqueeze(2), torch.rand(5, 3, 1, 3, device=a.device), [1, 3], [1, 1], [0, 1],
                      [1, 1], 1, False, None),
}


@pytest.mark.parametrize("raw", RAW)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced", "empty"])
def test_opcheck(device, raw, layout):
    a, g = make(device, {"sliced": 66, "empty": 0}.get(layout, 33))
    if layout == "sliced":
        a, g = a[..., ::2], g[..., ::2]
    elif layout == "channels last":
        a, g = a.mT.contiguous().mT, g.mT.contiguous().mT
    torch.library.opcheck(getattr(torch.ops.mbq, raw).default, RAW[raw](a, g))


A, G = torch.randn(2, 7, 6), torch.randn(2, 7, 4)
IMAGES = torch.randn(2, 4, 6, 6), torch.randn(2, 6, 6, 6)
PAIRS, FLAGS = ([1, 1], [1, 1], [0, 0], [1, 1]), (1, True, None)
MALFORMED = {
    "other samples": ("linear", (A, G[:1], None, True, None)),
    "other positions": ("linear", (A, G[:, :3], None, True, None)),
    "a matrix": ("linear", (A[0], G[0], None, True, None)),
    "one float64": ("linear", (A.double(), G, None, True, None)),
    "integers": ("linear", (A, G.int(), None, True, None)),
    "a factor of another size": ("linear", (A, G, torch.ones(4, 5), True, None)),
    "a factor of another dtype": ("linear", (A, G, torch.ones(4, 6).double(), True, None)),
    "a factor with Gram products": ("linear", (A, G, torch.ones(4, 6), True, True)),
    "three dimensions": ("conv2d", (A, G, None, *PAIRS, *FLAGS)),
    "groups that do not divide": ("conv2d", (*IMAGES, None, *PAIRS, 3, True, None)),
    "no groups": ("conv2d", (*IMAGES, None, *PAIRS, 0, True, None)),
    "one stride": ("conv2d", (*IMAGES, None, [1, 1], [1], [0, 0], [1, 1], *FLAGS)),
    "stride 0": ("conv2d", (*IMAGES, None, [1, 1], [0, 1], [0, 0], [1, 1], *FLAGS)),
    "a factor of one group": ("conv2d", (*IMAGES, torch.ones(6, 2, 1, 1), *PAIRS, *FLAGS)),
}


@pytest.mark.parametrize("raw, arguments", MALFORMED.values(), ids=MALFORMED.keys())
def test_compiled_code_reads_nothing_it_was_not_given(raw, arguments):
    with pytest.raises(RuntimeError, match=f"^sample_grad_norm_{raw}: "):
        getattr(torch.ops.mbq, f"sample_grad_norm_{raw}_forward")(*arguments)


@every_op
def test_compile_fullgraph(device, op):
    a, g = make(device)
    assert torch.equal(torch.compile(op, fullgraph=True)(a, g), op(a, g))


@every_op
def test_shapes_change_without_recompiling(device, op):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(op, fullgraph=True, backend=counter, dynamic=True)
    for positions in (33, 34, 47, 64):
        a, g = make(device, positions)
        assert torch.equal(compiled(a, g), op(a, g))
    assert counter.frame_count <= 2


@every_op
def test_export(device, op):
    class Module(torch.nn.Module):
        def forward(self, a, g):
            return op(a, g)

    inputs = make(device)
    for strict in (False, True):
        exported = torch.export.export(Module(), inputs, strict=strict)
        assert "mbq" in str(exported.graph) and torch.equal(exported.module()(*inputs), op(*inputs))


@every_op
def test_vmap_is_a_loop(device, op):
    a, g = make(device, samples=6)
    a, g = a.unflatten(0, (3, 2)), g.unflatten(0, (3, 2))
    expected = torch.stack([op(one, other) for one, other in zip(a, g, strict=True)])
    assert torch.equal(torch.func.vmap(op)(a, g), expected)


@every_op
def test_gradients_do_not_flow(device, op):
    a, g = make(device)
    assert not op(a.requires_grad_(), g).requires_grad
    grad = torch.func.grad(lambda x: (op(x, g) * x[:, 0, 0]).sum())(a.detach())
    assert torch.equal(grad[:, 0, 0], op(a, g)) and grad[:, 1:].eq(0).all()


@every_op
@pytest.mark.parametrize("samples", [1, 9])
def test_result_repeats(device, backend, op, samples):
    """Bit for bit; with another number of threads the library's product may differ in the last."""
    a, g = make(device, 300 if backend != "triton" else 40, samples)
    first, threads = op(a, g), torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results = [op(a, g) for _ in range(3)]
            assert all(torch.equal(result, results[0]) for result in results)
            torch.testing.assert_close(results[0], first, rtol=2e-7, atol=0)
    finally:
        torch.set_num_threads(threads)
