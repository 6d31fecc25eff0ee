"""The recipe that trains every bit-width on its own coreset."""

from dataclasses import replace

import pytest
import torch
from coreset_networks import BITS, any_precision_model
from networks import one_thread, tiny_model, vision_transformer  # noqa: F401
from small_data import halves

from mbq_lab import Options
from mbq_lab.recipes.emqnet import EmqNet
from mbq_lab.training.interrupt import Interrupted, StopRequest
from mbq_lab.training.loop import Training
from mbq_train import AnyPrecision, GradNormScorer, Learned, convert, score_images, set_bits

OPTIONS = Options.for_recipe("emqnet", bits=BITS, epochs=5, score_epochs=2, batch_size=8, prune_rate=0.7,
                             learning_rate=0.01)


@pytest.fixture(scope="module")
def data():
    return halves()


@pytest.fixture
def model(data):
    return any_precision_model(data)


def training(model, data, state=None, **changes):
    return Training(model, data, BITS, replace(OPTIONS, **changes), state=state, recipe=EmqNet)


def drawn(train):
    """The rows of every step, by epoch and bit-width."""
    seen, take = {}, train._take_step

    def watch(batches, step):
        for b, batch in zip(BITS, batches * (len(BITS) // len(batches)), strict=True):
            seen.setdefault((train.state.epoch, b), []).extend(batch.rows.tolist())
        return take(batches, step)

    train._take_step = watch
    return seen


@pytest.mark.parametrize("options", [{}, {"score": "el2n", "shared_scores": True}, {"score": "last_layer", "sampling":
                                     "balanced"}, {"sampling": "random", "score_epochs": 0}, {"sampling": "top-k"},
                                     {"score": "tdds", "score_epochs": 3}, {"rescore_every": 1}, {"resample": False},
                                     {"schedule": "accumulate", "weight_bank": True}], ids=str)
def test_every_bit_width_trains_on_its_own_coreset(data, model, options):
    train, records = training(model, data, **options), []
    seen, phase1 = drawn(train), train.options.score_epochs
    train.run(on_epoch=records.append)
    for epoch in range(5):
        for b in BITS:
            assert len(seen[epoch, b]) == len(set(seen[epoch, b])) == (60 if epoch < phase1 else 18)
    last = [set(seen[4, b]) for b in BITS]
    shared_draw = options.get("sampling") == "top-k" and options.get("shared_scores")
    assert shared_draw or len(set(map(frozenset, last))) > 1
    once = options.get("resample") is False or options.get("sampling") == "top-k"
    assert (set(seen[3, 2]) == set(seen[4, 2])) == once
    scored = [record["epoch"] for record in records if "scores" in record]
    assert scored == ([] if "random" in options.values() else [2, 3, 4] if "rescore_every" in options else [phase1])
    assert all(record["scoring_seconds"] > 0 for record in records if "scores" in record)
    for i in range(len(train.recipe.samplers)):
        if scored and train.options.sampling == "top-k":
            assert set(train.recipe.scores[BITS[i]].topk(18).indices.tolist()) == last[i]


@pytest.mark.parametrize("options", [{"rescore_every": 1}, {"score": "tdds", "score_epochs": 3}], ids=str)
def test_a_stopped_run_draws_the_same_images(data, options):
    def go(stop_at):
        model = convert(tiny_model(), BITS[1:], batch_norm="shared", weights=AnyPrecision(correction=True))
        train, states, stop = training(model, data, **options), [], StopRequest()
        seen = drawn(train)

        def on_batch(*_):
            stop.signal = 2 if train._steps_done() == stop_at else None

        try:
            train.run(save=states.append, on_batch=on_batch, stop=stop)
        except Interrupted:
            train = training(model, data, state=states[-1], **options)
            more = drawn(train)
            train.run()
            seen = {key: seen.get(key, []) + more.get(key, []) for key in {*seen, *more}}
        return seen, model.state_dict()

    whole, weights = go(-1)
    for stop_at in (11, 18, 23):  # in phase 1, after it, in an epoch of phase 2
        parts, same = go(stop_at)
        assert parts == whole and all(torch.equal(weights[name], same[name]) for name in weights)


def test_the_recipe_on_a_transformer_with_learned_scales(data):
    model, records = convert(vision_transformer(), BITS[1:], weights=Learned(correction=True)), []
    training(model, data, quantizer="learned").run(on_epoch=records.append)
    assert [record["epoch"] for record in records if "scores" in record] == [2]
    scores = score_images(model, data.still_batches(20), BITS)
    alone, batch = GradNormScorer(model.eval(), weights="latent"), next(data.still_batches(3))
    set_bits(model, 2)  # the class token and the positions count
    each = [alone(batch.images[i:i + 1], batch.labels[i:i + 1]) for i in range(3)]
    assert {"token", "positions"} <= each[0].layers.keys()
    torch.testing.assert_close(scores[2][:3], torch.cat([norms.total for norms in each]), rtol=1e-4, atol=1e-6)
    assert records[-1]["loss"][4] < records[0]["loss"][4]


def test_options_of_the_recipe_are_checked_together():
    for change, match in (({"score_epochs": 5}, "score_epochs must be below epochs, 5, got 5"),
                          ({"score_epochs": 0}, "score_epochs must be at least 1 with sampling 'probability'"),
                          ({"score": "tdds"}, "score_epochs must be at least 3 .*score 'tdds', got 2"),
                          ({"prune_rate": 1.0}, "prune_rate must be finite and below 1, got 1.0"),
                          ({"recipe": "plain"}, "prune_rate must be left alone unless recipe is emqnet, got 0.7 with")):
        with pytest.raises(ValueError, match=f"options: {match}"):
            replace(OPTIONS, **change)
    assert OPTIONS.quantizer == "any-precision" and OPTIONS.weight_correction and OPTIONS.batch_norm == "shared"


def test_too_few_images_for_a_batch_are_an_error(data, model):
    with pytest.raises(ValueError, match="prune_rate must leave a batch of 32 images, got 0.7, which leaves 18 of 60"):
        training(model, data, batch_size=32)
