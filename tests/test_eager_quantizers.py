"""The eager rival computes what the kernel computes."""

import eager_quantizers as eager
import pytest
import torch

import mbq_kernels


def run_both(x, scale, offset, **options):
    results = []
    for function in (eager.fake_quantize, mbq_kernels.fake_quantize):
        inputs = [t.clone().requires_grad_() for t in (x, scale, offset) if t is not None]
        out = function(*inputs, **options)
        out.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
        results.append((out.detach(), *(t.grad for t in inputs)))
    return results


@pytest.mark.parametrize("bits, signed", [(1, True), (1, False), (2, True), (4, False), (8, True), (8, False)])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("with_offset", [False, True], ids=["no_offset", "offset"])
def test_eager_rival_gives_the_kernels_values_and_gradients(bits, signed, axis, with_offset):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 5, 4, generator=generator)
    shape = () if axis is None else (x.shape[axis],)
    scale = torch.rand(shape, generator=generator) * 0.2 + 0.05
    offset = torch.rand(shape, generator=generator) * 0.3 if with_offset else None
    theirs, ours = run_both(x, scale, offset, bits=bits, signed=signed, axis=axis)
    assert torch.equal(theirs[0], ours[0])
    assert torch.equal(theirs[1] == 0, ours[1] == 0)  # the same clip mask
    assert ours[2].abs().min() > 0
    torch.testing.assert_close(theirs[1:], ours[1:], rtol=1e-4, atol=1e-6)


def test_eager_rival_agrees_in_bfloat16():
    x = torch.randn(33, 17, generator=torch.Generator().manual_seed(3)).bfloat16()
    theirs, ours = run_both(x, torch.tensor(0.11), None, bits=4)
    assert theirs[0].dtype == torch.bfloat16 and torch.equal(theirs[0], ours[0])


def test_eager_rival_compiles_as_one_graph():
    x, scale = torch.randn(8, 6), torch.rand(8) + 0.1
    compiled = torch.compile(eager.fake_quantize, fullgraph=True, backend="aot_eager")
    for options in ({"bits": 4, "axis": 0}, {"bits": 1, "axis": 0}, {"bits": 4, "axis": 0, "offset": scale - 0.5}):
        assert torch.equal(compiled(x, scale, **options), eager.fake_quantize(x, scale, **options))
