"""The places where a recipe changes the training loop."""

from dataclasses import replace

import pytest
import torch
from networks import interruptible, one_thread, tiny_model  # noqa: F401
from small_data import Told, halves

from mbq_lab import Options, evaluate, resume_run, train_run
from mbq_lab.recipes import registry
from mbq_lab.runs import networks as run_networks
from mbq_lab.training.interrupt import Interrupted, StopRequest
from mbq_lab.training.loop import Training
from mbq_lab.training.recipe import Recipe
from mbq_train import convert
from mbq_train.checkpoint import load_metadata

BITS = (32, 4, 2)
OPTIONS = Options(bits=BITS, epochs=3, batch_size=8, learning_rate=0.01)


class Subsets(Recipe):
    """Every bit-width has its own half of the images, with a step less in every epoch; the weights are drawn to 0."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drawn, self.strength, self.seen = {b: torch.zeros(self.data.train_size) for b in self.bits}, 0.5, []

    def images(self, epoch):
        return 32 - 8 * epoch

    def batches(self, epoch, start):
        rows = [torch.arange(i, i + self.images(epoch)) for i in range(len(self.bits))]
        for batches in zip(*(self._batches(epoch, start, part) for part in rows), strict=True):
            for bits, batch in zip(self.bits, batches, strict=True):
                self.drawn[bits][batch.rows] += 1
            yield batches

    def penalty(self, bits):
        if bits == 32:
            return None
        return self.strength * self.model[3].weight.square().sum()

    def end_epoch(self, epoch):
        self.strength *= 2
        return {"strength": self.strength}

    def state(self):
        return {f"drawn.{b}": table for b, table in self.drawn.items()}, {"strength": self.strength}

    def load_state(self, tensors, values):
        self.drawn, self.strength = {b: tensors[f"drawn.{b}"] for b in self.bits}, values["strength"]


@pytest.fixture(scope="module")
def data():
    return halves()


def training(data, recipe=Subsets, **changes):
    return Training(convert(tiny_model(), (4, 2)), data, BITS, replace(OPTIONS, **changes), recipe=recipe)


@pytest.mark.parametrize("options", [{}, {"schedule": "accumulate", "weight_bank": True}, {"distill": 0.5}], ids=str)
def test_every_bit_width_trains_on_its_own_images(data, options):
    train, records = training(data, **options), []
    train.run(on_epoch=records.append)
    assert train.steps == 4 + 3 + 2
    for i, b in enumerate(BITS):
        expected = sum((torch.arange(60) >= i) & (torch.arange(60) < i + 32 - 8 * epoch) for epoch in range(3))
        assert torch.equal(train.recipe.drawn[b].long(), expected)
    assert [record["strength"] for record in records] == [1.0, 2.0, 4.0]
    assert all(list(record["loss"]) == list(BITS) for record in records)


def test_the_rate_falls_over_the_steps_that_there_are(data):
    train, rates = training(data), []
    train.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    train.run()
    rates = rates[::len(BITS)]
    assert len(rates) == 9 and rates[0] == 0.01 and rates == sorted(rates, reverse=True) and rates[-1] < 4e-4


def test_the_penalty_is_added_to_the_gradient_and_not_to_the_losses(data):
    class Heavy(Subsets):
        def penalty(self, bits):
            penalty = super().penalty(bits)
            return penalty if penalty is None else 1e3 * penalty

    gradients, losses = {}, {}
    for name, recipe in (("light", Subsets), ("heavy", Heavy)):
        train = training(data, recipe, optimizer="sgd", learning_rate=1e-30)
        batches = next(train.recipe.batches(0, 0))
        losses[name] = train.stepper(*batches)
        gradients[name] = train.model[3].weight.grad.clone()
    assert torch.equal(losses["light"], losses["heavy"])
    weight = train.model[3].weight.detach()
    torch.testing.assert_close(gradients["heavy"] - gradients["light"], 999 * weight, rtol=1e-4, atol=1e-4)


def test_the_float_path_trains_beside_the_bit_widths(data):
    train = training(data, Recipe, epochs=8)
    scale = train.model[3].weight_quantizer.scales["4"]
    before = scale.detach().clone()
    train.run()
    assert all(evaluate(train.model, data, b) >= 0.9 for b in BITS) and not torch.equal(scale, before)


def test_a_stopped_recipe_goes_on_bit_for_bit(data):
    def snapshots(stop_at):
        states, train = [], training(data)
        stop = StopRequest()

        def on_batch(*_):
            stop.signal = 2 if len(states) == 0 and train._steps_done() == stop_at else None

        try:
            train.run(save=lambda state: states.append(state), save_every=1e9, on_batch=on_batch, stop=stop)
        except Interrupted:
            train = Training(train.model, data, BITS, OPTIONS, state=states[-1], recipe=Subsets)
            train.run()
        return train.model.state_dict() | {f"drawn.{b}": t for b, t in train.recipe.drawn.items()}

    whole = snapshots(stop_at=-1)
    for stop_at in (2, 5):
        parts = snapshots(stop_at)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_runs_checkpoint_holds_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.RECIPES, "plain", Strength)
    monkeypatch.setattr(run_networks, "load_data", lambda *args, **options: halves())
    monkeypatch.setattr(run_networks, "build_model", lambda *args, **options: tiny_model())
    options = Options(bits=BITS, epochs=2, float_epochs=1, batch_size=12)
    whole, parts = [], []
    train_run(options, tmp_path / "whole", observer=Told(record=whole.append))

    def stop(phase, epoch, images, total):
        if phase == "quantized" and epoch == 1 and images == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(options, tmp_path / "parts", observer=Told(batch=stop))
    assert load_metadata(tmp_path / "parts/checkpoint.safetensors")["state"]["recipe"] == {"strength": 1.0}
    resume_run(tmp_path / "parts", observer=Told(record=parts.append))
    assert parts[0]["strength"] == whole[-2]["strength"] == 2.0
    assert parts[0]["loss"] == whole[-2]["loss"] and list(parts[-1]["accuracy"]) == list(BITS)


class Strength(Recipe):
    """Counts its epochs by doubling, in the quantized phase alone."""

    strength = 0.5

    def end_epoch(self, epoch):
        if self.bits == (32,):
            return {}
        self.strength *= 2
        return {"strength": self.strength}

    def state(self):
        return {}, {"strength": self.strength}

    def load_state(self, tensors, values):
        self.strength = values["strength"]
