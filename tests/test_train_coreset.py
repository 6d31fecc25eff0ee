"""Scores, and what is drawn by them."""

import math

import pytest
import torch
from coreset_networks import BITS, any_precision_model
from networks import one_thread, tiny_model  # noqa: F401
from small_data import halves
from torch.utils.data import DataLoader, TensorDataset

from mbq_train import (
    CoresetSampler,
    GradNormScorer,
    draw_rows,
    score_images,
    set_bits,
)
from mbq_train.coreset.sampling import coreset_size
from mbq_train.coreset.scores import TddsScores, averaged


@pytest.fixture(scope="module")
def data():
    return halves()


@pytest.fixture
def model(data):
    return any_precision_model(data)


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
