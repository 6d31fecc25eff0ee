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


def trained(model, least, rate=0.01):
    """Return the model after 20 steps, one accelerated and one that was restored after 10, with the losses of each."""
    twins = [model, copy.deepcopy(model), copy.deepcopy(model)]
    for twin in twins[1:]:
        assert len(accelerate(twin).replaced) >= least
    return [(twin, twenty_losses(twin, IMAGES, rate, restored_at=at)) for twin, at in zip(
        twins, (None, None, 10), strict=True)]


def assert_same_bits(found):
    (original, losses), *others = found
    states = [model.state_dict() for model, _ in found]
    for (_, our_losses), state in zip(others, states[1:], strict=True):
        assert our_losses == losses and list(state) == list(states[0])
        assert all(torch.equal(value, state[name]) for name, value in states[0].items())
    x = torch.randn(IMAGES)
    outputs = [model.eval()(x) for model, _ in found]  # observers see x too
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


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


def aside(model, by):
    """Return a copy whose Parameters are greater by that share."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1 + by)
    return twin


def distance(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return sum(float((one - two).square().sum()) for one, two in pairs if one.is_floating_point()) ** 0.5


@every_network
def test_brevitas(network):
    """Sums behind scales are in another order, so that codes flip in time: as after a change of the last digit of all
    Parameters, and later."""
    model = brevitas_of(network())
    others = [aside(model, by) for by in (2.0**-23, -(2.0**-23))]
    changed = [(twin, twenty_losses(twin, IMAGES, 0.001)) for twin in others]
    (original, losses), *found = trained(model, 40, rate=0.001)
    drift = lambda others: torch.tensor(others).sub(torch.tensor(losses)).abs().cummax(0).values  # noqa: E731
    usual = torch.maximum(*(drift(other_losses) for _, other_losses in changed))
    for ours, our_losses in found:
        assert our_losses[0] == losses[0] and (drift(our_losses) <= 2 * usual).all()
        assert list(ours.state_dict()) == list(original.state_dict())
        assert distance(ours, original) <= 2 * max(distance(twin, original) for twin, _ in changed)
