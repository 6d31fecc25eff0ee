"""accelerate on torchao's fake-quantizers with dynamic ranges in float32: one pass for range and codes."""

import copy
import warnings

import pytest
import torch

import mbq_kernels
from mbq_train import accelerate
from mbq_train.drop_in import torchao_dynamic

warnings.filterwarnings("ignore", module="torchao")
pytest.importorskip("torchao")
from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = dict(dtype=torch.int8, granularity="per_token", is_symmetric=False)
GROUPS, CHANNELS = dict(dtype=torch.int4, group_size=32), dict(dtype=torch.int4, granularity="per_channel")


def test_formulas_of_another_torchao_are_its_own(monkeypatch):
    """The first call with a configuration compares."""
    monkeypatch.setattr(torchao_dynamic, "_agreed", {})
    computed = torchao_dynamic._computed
    monkeypatch.setattr(torchao_dynamic, "_computed", lambda *given: (computed(*given)[0] * 2, *computed(*given)[1:]))
    original = IntxFakeQuantizer(IntxFakeQuantizeConfig(**GROUPS))
    ours, x = copy.deepcopy(original), torch.randn(64, 64)
    accelerate(ours)
    assert torch.equal(ours(x), original(x)) and list(torchao_dynamic._agreed.values()) == [False]


class Halved(IntxFakeQuantizer):
    def _per_token_forward(self, x):
        return super()._per_token_forward(x) / 2


def test_methods_of_subclasses_run():
    ours, x = Halved(IntxFakeQuantizeConfig(**TOKENS)), torch.randn(64, 64)
    expected = ours(x)
    assert accelerate(ours).replaced and torch.equal(ours(x), expected)


@pytest.mark.parametrize("options, shape", [(TOKENS, (2, 3, 64)), (GROUPS, (6, 64)), (CHANNELS, (6, 50))],
                         ids=["tokens", "groups", "channels"])
def test_ranges_and_codes_are_one_pass(options, shape, monkeypatch):
    x, calls = torch.randn(shape), []
    original = IntxFakeQuantizer(IntxFakeQuantizeConfig(**options))
    ours = copy.deepcopy(original)
    accelerate(ours)
    fused = mbq_kernels.fake_quantize_dynamic
    ours(x)  # which compares first
    monkeypatch.setattr("mbq_kernels.fake_quantize_dynamic", lambda *args, **kwargs: calls.append(1) or fused(
        *args, **kwargs))
    assert torch.equal(ours(x), original(x)) and calls == [1]
    assert ours.scale.shape == original.scale.shape and torch.equal(ours.scale, original.scale)
