"""How often torch.compile compiles networks: as bit-widths, scales and the number of rows change."""

import copy

import pytest
import torch
from accelerated_networks import FAMILIES, made, step_of
from networks import one_thread, tiny_model, vision_transformer  # noqa: F401 - a fixture
from torch._dynamo.testing import CompileCounterWithBackend

import mbq_kernels as mbq
from mbq_train import accelerate, convert, drop_idle_gradients, set_bits


def graphs_of(model, calls, fullgraph=True):
    """Return how many graphs there are after each training step of `calls`, (bits, images)."""
    torch._dynamo.reset()
    counter, found = CompileCounterWithBackend("eager"), []
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for bits, images in calls:
        set_bits(model, bits)
        compiled(torch.rand(images, 1, 8, 8)).square().mean().backward()
        drop_idle_gradients(model, [bits])
        optimizer.step()
        optimizer.zero_grad()
        found.append(counter.frame_count)
    return found


@pytest.mark.parametrize("network", [tiny_model, pytest.param(vision_transformer, marks=pytest.mark.long)])
def test_bit_widths_are_a_symbol_and_then_batches_too(network):
    """Two graphs for all bit-widths; a second batch size makes one more, for all sizes."""
    model = convert(network(), (8, 6, 4, 2), batch_norm="shared", example=torch.rand(4, 1, 8, 8), keep_float=())
    bits = [(8, 4), (8, 4), (4, 4), (2, 4), (6, 4), (8, 4)]
    found = graphs_of(model, [*bits, (8, 7), (4, 5), (2, 9), (6, 4), (8, 12)])
    assert found == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]


def test_batch_norm_of_every_bit_width_is_a_graph_of_its_own():
    model = convert(tiny_model(), (8, 4), example=torch.rand(4, 1, 8, 8))
    found = graphs_of(model, [(b, n) for n in (4, 4, 7, 5, 9, 4) for b in (8, 4)])
    assert found == [1, 2, 2, 2, 3, 4, *[4] * 6]


FACTORS = {
    "tensor": lambda x, scale: mbq.fake_quantize(x, scale, bits=4, axis=1, grad_factor="tensor"),
    "narrow": lambda x, scale: mbq.fake_quantize(x, scale, bits=4, axis=1, narrow=True),
    "affine": lambda x, scale: mbq.fake_quantize_affine(x, scale, scale * 3, quant_min=-8, quant_max=7, axis=1,
                                                        grad_factor="tensor"),
}


@pytest.mark.parametrize("name", ["affine", pytest.param("tensor", marks=pytest.mark.long),
                                  pytest.param("narrow", marks=pytest.mark.long)])
def test_factors_of_sizes_are_symbols(name):
    """The factor of the gradient of a scale comes from the number of rows."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled, scale = torch.compile(FACTORS[name], backend=counter, fullgraph=True), torch.rand(6).requires_grad_()
    for rows in (4, 7, 5, 9, 12):
        x = torch.randn(rows, 6, requires_grad=True)
        found = [torch.autograd.grad(f(x, scale).square().sum(), (x, scale)) for f in (compiled, FACTORS[name])]
        assert torch.equal(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-6)
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", ["lsq-groups", "torch.ao", *(
    pytest.param(name, marks=pytest.mark.long) for name in FAMILIES if name not in ("lsq-groups", "torch.ao"))])
@pytest.mark.filterwarnings("ignore")
def test_accelerated_networks_are_compiled_as_often_as_the_original(name):
    """Scales and observers change in every step, and make no graph; a second batch size does, for all sizes."""
    original = made(name)
    ours = copy.deepcopy(original)
    assert accelerate(ours).replaced
    counts = []
    for model in (original, ours):
        torch._dynamo.reset()
        counter, found = CompileCounterWithBackend("eager"), []
        step = step_of(torch.compile(model, backend=counter))
        for rows in (192, 192, 192, 128, 160, 224, 192):
            step(rows)
            found.append(counter.frame_count)
        counts.append(found)
    few, many = counts[1][2], counts[1][3]
    assert counts[1][1:] == [few] * 2 + [many] * 4, counts
    # A quantizer that waits for its first values breaks the graph inside of one more function: ours.
    assert few <= counts[0][2] and many <= counts[0][3] + (name == "lsq"), counts
