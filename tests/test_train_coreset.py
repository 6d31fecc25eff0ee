"""Scores, what is drawn by them, and the recipe that trains on it."""

import math
from dataclasses import replace

import pytest
import torch
from networks import one_thread, tiny_model, vision_transformer  # noqa: F401
from small_data import halves
from torch.utils.data import DataLoader, TensorDataset

from mbq_lab import Options
from mbq_lab.recipes.emqnet import EmqNet
from mbq_lab.training.interrupt import Interrupted, StopRequest
from mbq_lab.training.loop import Training
from mbq_train import (
    AnyPrecision,
    CoresetSampler,
    GradNormScorer,
    Learned,
    convert,
    draw_rows,
    initialise,
    score_images,
    set_bits,
)
from mbq_train.coreset.sampling import coreset_size
from mbq_train.coreset.scores import TddsScores, averaged

BITS = (32, 4, 2)
OPTIONS = Options.for_recipe("emqnet", bits=BITS, epochs=5, score_epochs=2, batch_size=8, prune_rate=0.7,
                             learning_rate=0.01)


@pytest.fixture(scope="module")
def data():
    return halves()


@pytest.fixture
def model(data):
    model = convert(tiny_model(), BITS[1:], batch_norm="shared", weights=AnyPrecision(correction=True))
    initialise(model, next(data.test_batches(20)).images)
    return model


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("score", ["grand", "last_layer", "el2n"])
@pytest.mark.parametrize("batch_size", [7, 60])
def test_scores_are_those_of_the_definition(data, model, score, batch_size):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = score_images(model, data.still_batches(batch_size), BITS, score=score)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    batch = next(data.still_batches(60))
    model.eval()
    for b in BITS:
        set_bits(model, b)
        if score == "grand":
            expected = GradNormScorer(model, weights="latent")(batch.images, batch.labels).total
        else:
            features = model[:-1](batch.images)
            error = model[-1](features).softmax(dim=1) - torch.nn.functional.one_hot(batch.labels, 2)
            expected = error.norm(dim=1)
            if score == "last_layer":
                expected = expected * (features.square().sum(dim=1) + 1).sqrt()
        torch.testing.assert_close(scores[b], expected.detach(), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(scores[32], scores[2], rtol=1e-2)


def test_tdds_is_the_spread_of_the_steps_of_the_prediction(data):
    logits = torch.randn(15, 60, 2, generator=generator())

    class Played(torch.nn.Module):
        def forward(self, x):
            return logits[self.epoch, :len(x)] if len(x) == 60 else None

    played, scores = Played(), TddsScores()
    for played.epoch in range(15):
        if played.epoch < 3:
            with pytest.raises(ValueError, match="TddsScores: at least 3 epochs must have been seen, got fewer"):
                scores.scores((32,))
        scores.update(played, data.still_batches(60), (32,))
    p = logits.double().softmax(dim=2)
    moved = [(p[t] * (p[t] / p[t - 1]).log()).sum(dim=1).abs() for t in range(1, 15)]
    expected = None
    for t in range(2, 15):
        window = torch.stack(moved[max(0, t - 10):t])
        spread = (window - window.mean(dim=0)).square().sum(dim=0).sqrt()
        expected = spread if expected is None else 0.9 * spread + 0.1 * expected
    torch.testing.assert_close(scores.scores((32,))[32].double(), expected, rtol=5e-3, atol=5e-3)


def test_averaged_scores_weigh_all_bit_widths_alike():
    scores = averaged({8: torch.tensor([1.0, 3.0]), 2: torch.tensor([30.0, 10.0])})
    assert scores[8].tolist() == scores[2].tolist() == [1.0, 1.0]


def test_probability_draws_are_in_the_proportion_of_the_scores():
    scores = torch.tensor([1.0, 2.0, 4.0, 8.0])
    for temperature in (1.0, 2.0):
        first = torch.stack([draw_rows(scores, 1, generator(seed), temperature=temperature) for seed in range(4000)])
        share = first.flatten().bincount(minlength=4) / 4000
        wanted = scores ** (1 / temperature) / (scores ** (1 / temperature)).sum()
        assert (share - wanted).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_every_kind_of_sampling_draws_different_rows_without_replacement():
    scores, labels = torch.rand(50, generator=generator()), torch.arange(50) % 3
    for sampling in ("probability", "top-k", "random", "balanced"):
        rows = draw_rows(scores, 20, generator(1), sampling=sampling, labels=labels)
        assert len(rows.unique()) == 20 and torch.equal(rows, rows.sort().values)
        assert torch.equal(rows, draw_rows(scores, 20, generator(1), sampling=sampling, labels=labels))
        assert torch.equal(draw_rows(scores, 50, generator(1), sampling=sampling, labels=labels), torch.arange(50))
    assert torch.equal(draw_rows(scores, 7, generator(), sampling="top-k"), scores.topk(7).indices.sort().values)
    counts = labels[draw_rows(scores, 25, generator(), sampling="balanced", labels=labels)].bincount()
    assert counts.tolist() in ([9, 8, 8], [8, 9, 8], [8, 8, 9])
    assert torch.equal(draw_rows(torch.zeros(9), 9, generator()), torch.arange(9))
    assert draw_rows(torch.tensor([0.0, 1.0, 0.0, 1.0]), 2, generator()).tolist() == [1, 3]


@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e6])
def test_images_with_score_0_are_drawn_when_no_others_are_left(temperature):
    scores = torch.tensor([1e-38, 1.0]).repeat_interleave(20).repeat(2) * (torch.arange(80) < 40)
    assert (draw_rows(scores, 30, generator(), temperature=temperature) < 40).all()
    rows = draw_rows(scores, 60, generator(), temperature=temperature)
    assert (rows < 40).sum() == 40
    assert not torch.equal(rows, draw_rows(scores, 60, generator(1), temperature=temperature))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_bad_scores_are_refused_and_named(value):
    scores = torch.ones(9)
    scores[[2, 3, 5, 7]] = value
    with pytest.raises(ValueError, match=r"must be finite and at least 0, got others for 4 images: 2 \(.*, ...$"):
        draw_rows(scores, 3, generator())
    with pytest.raises(ValueError, match="got others for 4 images"):
        CoresetSampler(scores, prune_rate=0.5)


@pytest.mark.parametrize("call, match", [
    (lambda: coreset_size(100, 1.0, batch_size=1), r"prune_rate must be in \[0, 1\), got 1.0"),
    (lambda: coreset_size(100, -0.1, batch_size=1), r"prune_rate must be in \[0, 1\), got -0.1"),
    (lambda: coreset_size(100, math.nan, batch_size=1), r"prune_rate must be in \[0, 1\), got nan"),
    (lambda: coreset_size(100, 0.9, batch_size=16), "must leave a batch of 16 images, got 0.9, which leaves 10 of 100"),
    (lambda: draw_rows(torch.ones(3), 4, generator()), r"count must be in 1..3, got 4"),
    (lambda: draw_rows(torch.ones(3), 2, generator(), temperature=0.0), "temperature must be above 0, got 0.0"),
    (lambda: draw_rows(torch.ones(3), 2, generator(), sampling="topk"), "did you mean 'top-k'"),
    (lambda: draw_rows(torch.ones(3), 2, generator(), sampling="balanced"), "labels must be given"),
    (lambda: draw_rows(torch.ones(3), 2, generator(), sampling="balanced", labels=torch.zeros(4, dtype=torch.int64)),
     r"labels must have the shape of scores, \(3,\), got \(4,\)"),
])
def test_arguments_out_of_range_are_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_sampler_feeds_a_loader_and_is_shared_out_over_ranks():
    scores, images = torch.rand(101, generator=generator()), TensorDataset(torch.arange(101))
    samplers = [CoresetSampler(scores, prune_rate=0.6, seed=3, rank=rank, world=3) for rank in range(3)]
    for epoch in (0, 1):
        parts = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            parts.append(torch.cat([batch for batch, in DataLoader(images, batch_size=4, sampler=sampler)]))
        assert [len(part) for part in parts] == [13] * 3 and len(torch.cat(parts).unique()) == 39
        assert set(torch.cat(parts).tolist()) <= set(samplers[0].rows(epoch).tolist())
    assert not torch.equal(samplers[0].rows(0), samplers[0].rows(1))
    once = CoresetSampler(scores, prune_rate=0.6, seed=3, resample=False)
    assert torch.equal(once.rows(0), once.rows(5)) and torch.equal(once.rows(0), samplers[0].rows(0))
    assert not torch.equal(CoresetSampler(scores, prune_rate=0.6, seed=3, key=2).rows(0), samplers[0].rows(0))


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
