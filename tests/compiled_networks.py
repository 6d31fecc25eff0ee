"""A converted network beside the same under torch.compile."""

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mbq_train import drop_idle_gradients, set_bits


def gradients(model):
    """Return the gradients that are there, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_two_compiles(model, images, scales):
    """Assert that two compiles serve all bit-widths with eager outputs and gradients, those of `scales(bits)` too."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for bits in (8, 6, 4, 2, 6, 8):
        set_bits(model, bits)
        results = []
        for forward in (compiled, model):
            model.zero_grad()
            out = forward(images)
            out.square().sum().backward()
            drop_idle_gradients(model, [bits])
            results.append((out.detach(), gradients(model)))
        (out, found), (expected, expected_gradients) = results
        assert torch.equal(out, expected) and found.keys() == expected_gradients.keys()
        assert set(scales(bits)) <= found.keys()
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2
