"""Whole networks of other libraries: 20 training steps with accelerate and without, and with a restore in the middle.
"""

import copy

import pytest
import torch
import torch.ao.quantization as aoq
from library_networks import IMAGES, brevitas_of, resnet18, torch_ao_of, torchao_of, vit
from networks import one_thread  # noqa: F401 - a fixture
from twin_training import twenty_losses

from mbq_train import accelerate

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]
every_network = pytest.mark.parametrize("network", [resnet18, vit])


def trained(model, least):
    """Return the model after 20 steps, one accelerated and one that was restored after 10, with the losses of each."""
    twins = [model, copy.deepcopy(model), copy.deepcopy(model)]
    for twin in twins[1:]:
        assert len(accelerate(twin).replaced) >= least
    return [(twin, twenty_losses(twin, IMAGES, 0.01, restored_at=at)) for twin, at in zip(
        twins, (None, None, 10), strict=True)]


def assert_same_bits(found):
    (original, losses), *others = found
    for ours, our_losses in others:
        assert our_losses == losses
        assert list(ours.state_dict()) == list(original.state_dict())
        assert all(torch.equal(value, ours.state_dict()[name]) for name, value in original.state_dict().items())
        x = torch.randn(IMAGES)
        assert torch.equal(original.eval()(x), ours.eval()(x))


@every_network
def test_torchao(network):
    found = trained(torchao_of(network()), 2 * 16)
    assert_same_bits(found)
    x, models = torch.randn(IMAGES), [torchao_of(model, "convert") for model, _ in found]
    assert torch.equal(models[0](x), models[1](x)) and torch.equal(models[0](x), models[2](x))


@every_network
def test_torch_ao(network):
    found = trained(torch_ao_of(network()), 2 * 16)
    assert_same_bits(found)
    converted = [aoq.convert(model) for model, _ in found]
    assert str(converted[0]) == str(converted[1]) == str(converted[2])
    weights = [[module.weight() for module in model.modules() if callable(getattr(module, "weight", None))]
               for model in converted]
    assert len(weights[0]) > 16 and all(
        torch.equal(one.int_repr(), other.int_repr()) for others in weights[1:]
        for one, other in zip(weights[0], others, strict=True))


@every_network
def test_brevitas(network):
    """Sums behind scales are in another order: losses drift apart by roundings until a code flips."""
    (original, losses), *others = trained(brevitas_of(network()), 40)
    for ours, our_losses in others:
        assert our_losses[0] == losses[0]
        torch.testing.assert_close(our_losses, losses, rtol=5e-3, atol=5e-3)
        states = original.state_dict(), ours.state_dict()
        assert list(states[0]) == list(states[1])
        for name, value in states[0].items():
            torch.testing.assert_close(states[1][name], value, rtol=1e-2, atol=1e-2, msg=name)
