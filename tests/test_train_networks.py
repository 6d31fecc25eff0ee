"""Networks of many kinds: converted, trained at every bit-width, saved, loaded and copied."""

import copy

import pytest
import torch
from foreign import package
from networks import (  # noqa: F401
    conv1d_network,
    depthwise_network,
    encoder_network,
    llama_network,
    one_thread,
    vision_transformer,
)
from torch import nn

from mbq_lab import build_model
from mbq_train import convert, plan_conversion, set_bits
from mbq_train.quantize.quantizer import quantizers

BITS = (8, 4, 2)
TOKENS = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2]])
NETWORKS = {
    "vision transformer": (vision_transformer, lambda: torch.randn(4, 1, 8, 8), 4),
    "depthwise": (depthwise_network, lambda: torch.randn(4, 1, 8, 8), 2),
    "conv1d": (conv1d_network, lambda: torch.randn(4, 2, 16), 2),
    "encoder": (encoder_network, lambda: torch.randn(4, 5, 8), 6),
    "llama": (llama_network, lambda: TOKENS, 11),
    "resnet18": (lambda: built("resnet18"), lambda: torch.randn(2, 3, 16, 16), 19),
    "mobilenetv2": (lambda: built("mobilenetv2"), lambda: torch.randn(2, 3, 16, 16), 51),
    "vit_t": (lambda: built("vit_t"), lambda: torch.randn(2, 3, 16, 16), 48),
}


def built(name):
    return build_model(name, classes=10, in_channels=3, image_size=(16, 16))




def train_step(model, x):
    """One step of an optimizer at every bit-width."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for bits in BITS:
        set_bits(model, bits)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def outputs(model, x):
    model.eval()
    results = []
    for bits in (32, *BITS):
        set_bits(model, bits)
        results.append(model(x))
    return results


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("make, data, count", NETWORKS.values(), ids=NETWORKS)
def test_networks_train_save_and_load(make, data, count, tmp_path):
    torch.manual_seed(1)
    x, model = data(), make()
    model.eval()
    with torch.no_grad():
        expected = model(x)
    model.train()
    plan = plan_conversion(model, BITS, example=x)
    assert sum(entry.action == "quantize" for entry in plan.entries) == count
    plan.apply()
    untrained = copy.deepcopy(model)
    set_bits(model, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), expected)
    train_step(model.train(), x)
    results = outputs(model, x)
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    assert all(quantizer.initialised.all() for quantizer in quantizers(model))
    assert not any(quantizer.initialised.any() for quantizer in quantizers(untrained))

    torch.save(model.state_dict(), tmp_path / "state.pt")
    fresh = convert(make(), BITS, example=x)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert equal(outputs(fresh, x), results)
    untrained.load_state_dict(model.state_dict())
    assert equal(outputs(untrained, x), results) and equal(outputs(copy.deepcopy(model), x), results)
    torch.save(model, tmp_path / "model.pt")
    whole = torch.load(tmp_path / "model.pt", weights_only=False)
    assert equal(outputs(whole, x), results)
    assert len({id(quantizer.bit_state) for quantizer in quantizers(whole)}) == 1


def test_a_vision_transformer_of_transformers_trains():
    transformers = package("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                                    image_size=8, patch_size=4, num_channels=1, num_labels=3)
    model, x = transformers.ViTForImageClassification(config), torch.randn(4, 1, 8, 8)
    plan = plan_conversion(model, BITS, example={"pixel_values": x})
    kept = [entry for entry in plan.entries if "keep_float" in entry.why]
    assert [entry.type for entry in kept] == ["Conv2d", "Linear"] and kept[1].name == "classifier"
    assert sum(entry.action == "quantize" for entry in plan.entries) == 2 * 6
    assert not any("not called" in entry.why for entry in plan.entries)
    model = plan.apply()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for bits in BITS:
        set_bits(model, bits)
        optimizer.zero_grad()
        model(pixel_values=x, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
    assert all(quantizer.initialised.all() for quantizer in quantizers(model))
    logits = outputs(LogitsOf(model), x)
    assert all(not torch.equal(a, b) for i, a in enumerate(logits) for b in logits[:i])


class LogitsOf(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(pixel_values=x).logits
