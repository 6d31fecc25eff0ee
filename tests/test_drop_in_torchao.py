"""accelerate on torchao's fake-quantizers: outputs, gradients, scales and converted networks as the original's."""

import copy
import pickle
import warnings

import pytest
import torch
from foreign import package
from torch import nn

from mbq_train import accelerate, restore

warnings.filterwarnings("ignore", module="torchao")
torchao = pytest.importorskip("torchao")
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_  # noqa: E402
from torchao.quantization.granularity import PerAxis, PerGroup  # noqa: E402
from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer, QATConfig  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
DYNAMIC = {
    "token": dict(dtype=torch.int8, granularity="per_token", is_symmetric=False),
    "channel": dict(dtype=torch.int8, granularity="per_channel"),
    "channel4": dict(dtype=torch.int4, granularity="per_channel"),
    "group32": dict(dtype=torch.int4, group_size=32),
    "group64-asymmetric": dict(dtype=torch.int4, group_size=64, is_symmetric=False),
    "group32-3bits": dict(dtype=torch.int3, group_size=32),
}


@pytest.fixture(autouse=True)
def small_tensors_are_ours_too(monkeypatch):
    for name in ("FEWEST", "FEWEST_HALVES"):
        monkeypatch.setattr(f"mbq_train.drop_in.torchao.{name}", 1)


def config_of(name, **more):
    return IntxFakeQuantizeConfig(**DYNAMIC[name], **more)


def learning(name, x):
    """Return a quantizer that learns its ranges, with the first values that x gives."""
    quantizer = IntxFakeQuantizer(config_of(name, is_dynamic=False, zero_point_precision=torch.float32))
    quantizer(x)
    quantizer.config.range_learning, quantizer._initialized = True, True
    quantizer._maybe_update_qparams_for_range_learning()
    return quantizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (3, 64)], ids=str)
@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_ranges(name, shape, dtype):
    original = IntxFakeQuantizer(config_of(name))
    ours = copy.deepcopy(original)
    assert len(accelerate(ours).replaced) == 1
    for call in range(2):
        x = [torch.randn(shape).mul(call + 1).to(dtype)]
        x += [x[0].clone().requires_grad_(), x[0].clone().requires_grad_()]
        expected, actual = original(x[1]), ours(x[2])
        assert torch.equal(expected, actual) and expected.dtype == actual.dtype
        assert torch.equal(original.scale, ours.scale) and torch.equal(original.zero_point, ours.zero_point)
        assert original.zero_point.dtype == ours.zero_point.dtype and original.scale.shape == ours.scale.shape
        grad = torch.randn(shape).to(dtype)
        expected.backward(grad), actual.backward(grad)
        assert torch.equal(x[1].grad, x[2].grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("zero_point", [torch.int32, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["token", "channel4", "group64-asymmetric"])
def test_zero_points_that_are_no_codes_tiny_scales_and_static_ranges(name, zero_point, dtype):
    """Zero points per group are floats, which torchao rounds to half floats; and products with a scale may underflow.
    """
    for x in (torch.rand(64, 128) * 300 + 100, torch.randn(64, 128) * 1e-7, -torch.zeros(64, 128)):
        for dynamic in (True, False):
            original = IntxFakeQuantizer(config_of(name, zero_point_precision=zero_point, is_dynamic=dynamic))
            ours = copy.deepcopy(original)
            accelerate(ours)
            for share in (1, 0.5):
                leaves = [(x * share).to(dtype).requires_grad_() for _ in range(2)]
                results = [module(leaf) for module, leaf in zip((original, ours), leaves, strict=True)]
                assert torch.equal(*results) and torch.equal(original.zero_point, ours.zero_point)
                for result in results:  # what follows may compute in place
                    result.mul_(2).backward(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(dtype))
                assert torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("name", ["channel", "group32", "group64-asymmetric"])
def test_learned_ranges(name):
    x = torch.randn(64, 128)
    original = learning(name, x)
    ours = copy.deepcopy(original)
    accelerate(ours)
    leaves = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for _ in range(2):
        grad = torch.randn(64, 128)
        results = [module(leaf) for module, leaf in zip((original, ours), leaves, strict=True)]
        assert torch.equal(*(result.detach() for result in results))
        for result in results:
            result.backward(grad)
        assert torch.equal(leaves[0].grad, leaves[1].grad)
        for (of, one), (_, other) in zip(original.named_parameters(), ours.named_parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-4, msg=of)
        with torch.no_grad():  # no integer any more, and the same in both
            for module in (original, ours):
                for parameter in module.parameters():
                    parameter.add_(0.013 * parameter.abs())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 8))


def losses(model, steps=20, restored_at=None):
    torch.manual_seed(1)
    optimizer, found = torch.optim.AdamW(model.parameters(), 1e-3), []
    for step in range(steps):
        if step == restored_at:
            restore(model)
        x, labels = torch.randn(48, 96).to(model[0].weight.dtype), torch.randint(0, 8, (48,))
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


BASES = {
    "int8-int4": lambda: Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4,
                                                               weight_granularity=PerGroup(32)),
    "weight-only": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0)),
}


@pytest.mark.parametrize("restored_at, dtype", [(None, torch.float32), (10, torch.float32), (None, torch.bfloat16)])
@pytest.mark.parametrize("base", BASES)
def test_twenty_steps_and_the_converted_network(base, restored_at, dtype):
    models = [network().to(dtype), network().to(dtype)]
    for model in models:
        quantize_(model, QATConfig(BASES[base](), step="prepare"))
    report = accelerate(models[1])
    assert len(report.replaced) == (6 if base == "int8-int4" else 3) and not report.left
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    assert losses(models[0]) == losses(models[1], restored_at=restored_at)
    for (name, one), other in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    for model in models:
        quantize_(model, QATConfig(BASES[base](), step="convert"))
    x = torch.randn(48, 96).to(dtype)
    assert torch.equal(models[0](x), models[1](x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embeddings_train_the_same(dtype):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Embedding(96, 64), nn.Linear(64, 64)).to(dtype))
        quantize_(models[-1], QATConfig(weight_config=config_of("group32"), step="prepare"),
                  filter_fn=lambda module, _: isinstance(module, (nn.Embedding, nn.Linear)))
    assert len(accelerate(models[1]).replaced) == 2
    for _ in range(20):
        tokens = torch.randint(0, 96, (4, 16))
        for model in models:
            model.zero_grad()
            model(tokens).float().pow(2).mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(parameter.grad)
        assert all(map(torch.equal, *(model.parameters() for model in models)))


def test_a_compiled_model_has_no_graph_break():
    models = [network(), network()]
    for model in models:
        quantize_(model, QATConfig(BASES["int8-int4"](), step="prepare"))
    accelerate(models[1])
    x = torch.randn(48, 96)
    assert torch.equal(models[0](x), torch.compile(models[1], backend="eager", fullgraph=True)(x))


def test_a_tiny_llama_trains_the_same():
    transformers = package("transformers")
    config = transformers.LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    found = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        quantize_(model, QATConfig(BASES["int8-int4"](), step="prepare"))
        if accelerated:
            assert len(accelerate(model).replaced) == 2 * 15  # q, k, v, o, gate, up, down in two layers, and lm_head
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        tokens, steps = torch.randint(0, 64, (2, 40)), []
        for _ in range(20):
            loss = model(input_ids=tokens, labels=tokens).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        found.append(steps)
    assert found[0] == found[1] and found[0][-1] < found[0][0]


def test_copies_pickles_and_switches():
    original = IntxFakeQuantizer(config_of("group32"))
    ours = copy.deepcopy(original)
    accelerate(ours)
    x = torch.randn(64, 64)
    expected = original(x)
    for module in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(module(x), expected)
        module.enabled = False
        assert module(x) is x


@pytest.mark.parametrize("more, reason", [
    (dict(scale_precision=torch.bfloat16), "divides in torch.bfloat16"),
])
def test_what_cannot_be_equal_is_left_alone_and_named(more, reason):
    model = nn.Sequential(IntxFakeQuantizer(config_of("group32", **more)))
    with pytest.warns(RuntimeWarning, match=reason):
        report = accelerate(model)
    assert [entry.why for entry in report.left] == [reason] and not report.replaced


@pytest.mark.parametrize("dtype, fewest", [(torch.float32, 16384), (torch.bfloat16, 32768)], ids=str)
def test_small_tensors_stay_torchaos(dtype, fewest, monkeypatch):
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr("mbq_kernels.fake_quantize_affine", lambda x, *args, **kwargs: calls.append(x.numel()) or x)
    for rows in (fewest // 128 - 1, fewest // 128):
        ours = IntxFakeQuantizer(config_of("channel", is_dynamic=False))
        accelerate(ours)
        ours(torch.randn(rows, 128).to(dtype))
    assert calls == [fewest]


def test_values_that_kernels_refuse_are_computed_by_torchao():
    original = IntxFakeQuantizer(config_of("token"))
    ours = copy.deepcopy(original)
    accelerate(ours)
    x = torch.randn(64, 64)
    x[3, 5], x[7, 1] = torch.nan, torch.inf
    torch.testing.assert_close(ours(x), original(x), rtol=0, atol=0, equal_nan=True)
