"""Losses and gradients that are not finite stop a training and are named."""

import math

import pytest
import torch
from networks import one_thread, tiny_model  # noqa: F401
from small_data import halves
from small_runs import BITS, OPTIONS, batch_of, train

from mbq_lab.training.loop import Training
from mbq_train import TrainingError, convert, initialise


@pytest.fixture(scope="module")
def data():
    return halves()


@pytest.mark.parametrize("place, match", [
    ("loss", r"train: loss must be finite, got (nan|inf) at 8 bits; it begins in layer 5, at step 1"),
    ("parameter", r"train: .*(parameter 3.weight at 8 bits|8 bits; it begins in parameter 3.weight).*, at step 1"),
])
def test_a_loss_that_is_not_finite_stops_with_step_bits_and_layer(data, place, match):
    model = convert(tiny_model(), BITS)
    initialise(model, batch_of(data).images)
    if place == "loss":
        model[5].register_forward_hook(lambda module, args, out: out / 0)
    else:
        with torch.no_grad():
            model[3].weight[0] = math.nan
    with pytest.raises(TrainingError, match=match):
        train(model, data)


def test_a_gradient_that_is_not_finite_stops_before_the_step(data):
    model = convert(tiny_model(), BITS)
    initialise(model, batch_of(data).images)
    model[3].weight.register_hook(lambda grad: grad * math.nan)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" not in name}
    with pytest.raises(TrainingError, match="train: gradients must be finite, got nan at 8 bits; NaN or infinity is in "
                                            "that of 3.weight, at step 1"):
        train(model, data, clip_norm=1.0)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) or "num_batches" in name for name, tensor in before.items())


def test_the_first_bad_layer_is_named_inside_a_converted_network(data):
    model = convert(tiny_model(), BITS)
    initialise(model, batch_of(data).images)
    with torch.no_grad():
        model[3].bias.fill_(3e38), model[0].bias.fill_(1e38)
    with pytest.raises(TrainingError, match="it begins in layer 1.by_bits.8, at step 1"):
        train(model, data)


def test_losses_that_are_looked_at_later_still_name_their_step(data, monkeypatch):
    model = convert(tiny_model(), BITS)
    training = Training(model, data, BITS, OPTIONS)
    monkeypatch.setattr(training, "_step", lambda batch: torch.tensor([1.0, 1.0, math.nan]))
    with pytest.raises(TrainingError, match="got nan at 2 bits; it begins in the loss, at step 1"):
        training.run()
