"""The second launch of Triton's backwards and counts: its sums, and that there is no third."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from manifest import MANIFEST
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")


def interpreted():
    from mbq_kernels.triton.quant_math import INTERPRETED

    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("Triton neither interprets here nor has a GPU")
    return "cpu" if INTERPRETED else "cuda"


@pytest.mark.parametrize("by_row", [True, False], ids=["by row", "by column"])
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("before, channels, after", [(1, 1, 1), (2, 5, 16), (9, 3, 113), (1, 1, 9001), (70, 9, 120)])
def test_channel_sums(before, channels, after, together, by_row):
    """Against float64 in another order; the numbers are such that float32 would lose them."""
    from mbq_kernels.triton._finish import launch_channel_sums

    device, levels = interpreted(), 3
    sums = torch.randn(before, channels, after, levels, generator=torch.Generator().manual_seed(after)).to(device)
    sums[-1, :, -1] += 1e6
    sums[0, :, 0] -= 1e6
    scales = torch.ones(levels // together, channels, device=device)
    shifts = scales if together == 1 else None
    units = torch.arange(1.0, 1 + scales.numel(), device=device).reshape(scales.shape)
    to_scale, to_shift = launch_channel_sums(SimpleNamespace(sums=(before, after), channels=channels, by_row=by_row),
                                             scales, sums, units, shifts, -2 * sums, levels)
    expected = sums.double().sum((0, 2)).t().reshape(levels // together, together, channels).sum(1)
    torch.testing.assert_close(to_scale, (expected / units).float(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(to_shift, (-2 * expected).float() if together == 1 else to_shift.new_empty(0),
                               rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tiles", [0, 1, 1000, 10_000])
def test_counts(tiles):
    """Exact beyond 2^31, where the one rounding is the last."""
    from mbq_kernels.triton._finish import launch_counts

    counts = torch.randint(0, 2**24, (tiles, 2), dtype=torch.int32, generator=torch.Generator().manual_seed(tiles))
    penalty, rate = launch_counts(counts.to(interpreted()), 2**24 * tiles)
    exact, nonzero = counts.long().sum(0)
    assert penalty.item() == exact.float().item()
    assert rate.item() == (nonzero.double() / max(2**24 * tiles, 1)).float().item()


class Names(TorchDispatchMode):
    """Names of the PyTorch operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name, launches", [
    ("fake_quantize_forward", 1), ("fake_quantize_backward", 2), ("fake_quantize_affine_forward", 1),
    ("fake_quantize_affine_backward", 2), ("fake_quantize_multi_forward", 1), ("fake_quantize_multi_backward", 2),
    ("double_round_forward", 1), ("double_round_backward", 2), ("round_clamp_forward", 1), ("extract_lsb_forward", 1),
    ("lsb_penalty_forward", 2), ("lsb_penalty_backward", 1), ("round_clamp_lsb_forward", 2),
    ("round_clamp_lsb_backward", 1)])
def test_launches_of_a_call(name, launches, monkeypatch):
    """One forward and two backward, with counts two forward; beside them PyTorch only allocates."""
    from mbq_kernels.triton._elementwise import forward_kernel

    device, op = interpreted(), MANIFEST[name.rsplit("_", 1)[0]]
    kernel = getattr(importlib.import_module(f"mbq_kernels.triton.{op.name}"), name)
    arguments = op.raw[name](*op.data.make(device, 1))
    ran = []
    monkeypatch.setattr(type(forward_kernel), "run", lambda self, *args, **kwargs: ran.append(self))  # and no more
    with Names() as called:
        kernel(**arguments)
    assert len(ran) == launches
    assert called.names <= {"empty", "empty_like", "new_empty"}
