"""Per-sample gradient norms of products: no gradient flows through them, and they repeat bit for bit."""

import pytest
import torch
from manifest import MANIFEST
from manifest.entry import SAMPLES
from running import threads

every_op = pytest.mark.parametrize("op", [op.name for op in MANIFEST.values() if op.data is SAMPLES])


@every_op
def test_gradients_do_not_flow(device, op):
    norms = MANIFEST[op].call
    a, g = SAMPLES.make(device)
    assert not norms(a.requires_grad_(), g).requires_grad
    grad = torch.func.grad(lambda x: (norms(x, g) * x[:, 0, 0]).sum())(a.detach())
    assert torch.equal(grad[:, 0, 0], norms(a, g)) and grad[:, 1:].eq(0).all()


@every_op
@pytest.mark.parametrize("samples", [1, 9])
def test_result_repeats(device, backend, op, samples):
    """Bit for bit; with another number of threads the library's product may differ in the last."""
    norms = MANIFEST[op].call
    a, g = SAMPLES.make(device, 300 if backend != "triton" else 40, samples)
    first = norms(a, g)
    for count in (1, 3):
        with threads(count):
            results = [norms(a, g) for _ in range(3)]
        assert all(torch.equal(result, results[0]) for result in results)
        torch.testing.assert_close(results[0], first, rtol=2e-7, atol=0)
