"""HASB: what layers draw, and the recipe that trains with it."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cli import mbq
from networks import interruptible, one_thread  # noqa: F401
from safetensors.torch import load_file
from scipy.stats import chisquare
from small_data import Told, halves
from test_transitional_batch_norm import chain

from mbq_lab import Options, evaluate, resume_run, train_run
from mbq_lab.recipes.hasb import Hasb
from mbq_lab.runs import networks as run_networks
from mbq_lab.training import traces as lab_traces
from mbq_lab.training.loop import Training
from mbq_lab.training.optimizers import build_optimizer, rate_at
from mbq_train import (
    BitRoulette,
    DoubleRounding,
    Trace,
    clamp_scales,
    convert,
    own_layer_bits,
    set_bits,
    set_layer_bits,
    spread_batch_norms,
)
from mbq_train.quantize.layers import weight_layers
from mbq_train.training.optimizers import set_rate
from mbq_train.training.steps import Stepper

BITS = (8, 4, 2)
TRACES = {"3": 0.5, "6": 2.0}
OPTIONS = Options.for_recipe("hasb", bits=BITS, epochs=4, uniform_epochs=2, float_epochs=2, batch_size=12,
                             learning_rate=0.01, switch_rate=1.0, hessian_images=24, hessian_probes=3, seed=3)
NOT_METRICS = ("seconds", "images_per_second", "step_ms")


def network():
    return convert(chain(), BITS, weights=DoubleRounding(), batch_norm="transitional",
                   example=torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def data():
    return halves()


def roulette(traces=None, *, epochs=1, uniform_epochs=0, largest=1.0, **options):
    return BitRoulette(network(), traces or TRACES, epochs=epochs, uniform_epochs=uniform_epochs, largest=largest,
                       **options)


DRAWS = 3000


@pytest.mark.parametrize("layer, expected", [("3", [1 / 3, 1 / 3, 1 / 3]), ("6", [8 / 14, 4 / 14, 2 / 14])])
@pytest.mark.parametrize("bits", BITS)
def test_layers_draw_by_their_traces(layer, expected, bits):
    drawn = roulette()
    counts = Counter(drawn.draw(step, 0, bits)[layer] for step in range(DRAWS))
    assert counts.keys() == set(BITS)
    assert chisquare([counts[b] for b in BITS], [DRAWS * p for p in expected]).pvalue > 0.01
    assert torch.allclose(drawn.probabilities[drawn.layers.index(layer)].float(), torch.tensor(expected))


@pytest.mark.parametrize("epoch, sigma", [(2, 0.15), (9, 0.5)])
def test_a_share_sigma_of_the_layers_draws(epoch, sigma):
    drawn = roulette(epochs=10, uniform_epochs=2, largest=0.5, seed=1)
    assert drawn.sigma(epoch) == pytest.approx(sigma) and drawn.sigma(1) == 0
    draws = [drawn.draw(step, epoch, 4) for step in range(DRAWS)]
    for layer in TRACES:
        drew = sum(draw[layer] is not None for draw in draws)
        assert chisquare([drew, DRAWS - drew], [DRAWS * sigma, DRAWS * (1 - sigma)]).pvalue > 0.01
    both = sum(all(draw.values()) for draw in draws)  # layers draw independently of each other
    assert chisquare([both, DRAWS - both], [DRAWS * sigma**2, DRAWS * (1 - sigma**2)]).pvalue > 0.01
    assert drawn.draw(5, 1, 4) == drawn.draw(5, epoch, 32) == {"3": None, "6": None}


def test_the_paper_waits_ten_epochs_and_ends_at_a_half():
    drawn = BitRoulette(network(), TRACES, epochs=90)
    assert [drawn.sigma(epoch) for epoch in (0, 9, 10, 89)] == [0, 0, pytest.approx(11 / 180), 0.5]


def test_draws_depend_on_seed_step_and_bits_alone():
    def draws(seed, consumed):
        torch.manual_seed(consumed)
        drawn = roulette({"6": 2.0, "3": 0.5}, seed=seed)
        torch.rand(consumed)
        before = torch.get_rng_state()
        found = {(step, bits): drawn.draw(step, 0, bits) for step in range(50) for bits in BITS}
        assert torch.equal(torch.get_rng_state(), before)
        return found

    one, again, other = draws(0, 1), draws(0, 7), draws(1, 1)
    assert one == again != other
    assert len({tuple(draw.values()) for draw in one.values()}) == 9  # every configuration comes
    assert any(one[step, 8] != one[step, 2] for step in range(50))


def test_traces_of_the_hessian_count_an_element():
    of_elements = {"3": Trace(4.0, 0.0, 100), "6": Trace(2.0, 0.0, 10)}
    assert torch.equal(roulette(of_elements).probabilities, roulette().probabilities)
    alike = roulette({"3": 1.0, "6": 1.0})  # none below the mean
    assert torch.allclose(alike.probabilities, torch.tensor([8, 4, 2], dtype=torch.float64).expand(2, 3) / 14)
    assert roulette(bits=(4, 2)).probabilities.shape == (2, 2)


@pytest.mark.parametrize("traces, options, match", [
    ({"3": 1.0}, {}, "traces must hold every quantized layer, got none of '6'"),
    (TRACES | {"0": 1.0}, {}, "traces must be of quantized layers, got one of '0'"),
    (TRACES | {"6": math.nan}, {}, "traces must be finite and at least 0, got nan of '6'"),
    (TRACES | {"6": -1.0}, {}, "traces must be finite and at least 0, got -1.0 of '6'"),
    (TRACES | {"6": Trace(math.inf, 0.0, 2)}, {}, "traces must be finite and at least 0, got inf of '6'"),
    (TRACES, {"largest": 1.5}, r"largest must be in \[0, 1\], got 1.5"),
    (TRACES, {"largest": math.nan}, r"largest must be in \[0, 1\], got nan"),
    (TRACES, {"bits": (8, 6)}, "bits must be trained ones, of 8, 4, 2, got 6"),
    (TRACES, {"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
    (TRACES, {"uniform_epochs": -1}, "uniform_epochs must be an integer of at least 0, got -1"),
])
def test_what_cannot_be_drawn_from_is_an_error(traces, options, match):
    with pytest.raises(ValueError, match=f"BitRoulette: {match}"):
        roulette(traces, **options)


def test_wrong_calls_are_errors():
    with pytest.raises(TypeError, match="traces must be a mapping by layer, got list"):
        roulette([1.0, 2.0])
    with pytest.raises(ValueError, match="BitRoulette: model must hold layers made by convert"):
        BitRoulette(chain(), TRACES, epochs=1)
    with pytest.raises(ValueError, match="bits must be one of 32, 8, 4, 2, got 6"):
        roulette().draw(0, 0, 6)
    with pytest.raises(ValueError, match=r"epoch must be in 0..0, got 1"):
        roulette().draw(0, 1, 8)
    with pytest.raises(ValueError, match="schedule must be each with a configuration of layers, got 'accumulate'"):
        Stepper(chain(), (32,), None, schedule="accumulate", configuration=lambda bits: None)


def test_the_recipe_is_what_ones_own_loop_does(data):
    options = replace(OPTIONS, scale_rates="constant", distill=0.0)
    training = Training(network(), data, BITS, options, recipe=Hasb)
    training.run()
    model = network()
    optimizer, step = build_optimizer(model, options), 0
    draws = BitRoulette(model, training.recipe.traces, epochs=options.epochs, uniform_epochs=2, largest=1.0, seed=3)
    model.train()
    for epoch in range(options.epochs):
        for batch in data.train_batches(options.batch_size, seed=options.seed, epoch=epoch):
            set_rate(optimizer, rate_at(options, step=step, steps=training.steps))
            for bits in BITS:
                set_bits(model, bits)
                set_layer_bits(model, draws.draw(step, epoch, bits))
                optimizer.zero_grad()
                F.cross_entropy(model(batch.images), batch.labels).backward()
                optimizer.step()
                clamp_scales(model)
            step += 1
        if epoch == 1:
            spread_batch_norms(model)
    set_layer_bits(model, dict.fromkeys(draws.layers))
    expected, found = model.state_dict(), training.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_stages_and_what_is_said_of_them(data):
    model, records, states = network(), [], []

    def on_epoch(record):
        assert own_layer_bits(model) == {}
        records.append(record)
        states.append({key: norm.running_mean.clone() for key, norm in model[7].by_pair.items()})

    training = Training(model, data, BITS, OPTIONS, recipe=Hasb)
    training.run(on_epoch=on_epoch)
    assert [record["layers_drawn"] for record in records[:2]] == [0, 0]
    assert all(0.5 < record["layers_drawn"] <= 1 for record in records[2:]) and records[3]["layers_drawn"] == 1
    assert [record["mean_bits"] for record in records[:2]] == [pytest.approx(14 / 3)] * 2
    assert all(2 < record["mean_bits"] < 8 for record in records[2:])
    first, spread, mixed, _ = states
    assert not first["8,4"].equal(first["4,4"]) and spread["8,4"].equal(spread["4,4"]) and first["8,4"].equal(
        first["4,2"])  # pairs of different bit-widths wait for the end of the uniform epochs
    assert sum(not mixed[key].equal(spread[key]) for key in mixed if len(set(key.split(","))) == 2) == 6
    summary = training.recipe.summary()["mixed"]
    assert [entry["bits"] for entry in summary] == list(BITS)
    for entry in summary:
        assert entry["layer_bits"].keys() == weight_layers(model).keys() and entry["accuracy"] > 0.5
        assert entry["mean_bits"] == sum(entry["layer_bits"].values()) / 2
    assert own_layer_bits(model) == {} and all(evaluate(model, data, bits) > 0.9 for bits in BITS)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(run_networks, "load_data", lambda *args, **options: halves(augment=("crop", "flip")))
    monkeypatch.setattr(run_networks, "build_model", lambda *args, **options: chain())


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in NOT_METRICS} for record in records]


@pytest.mark.parametrize("phase, epoch", [("float", 1), ("quantized", 0), ("quantized", 1), ("quantized", 3)])
def test_a_run_stopped_in_any_stage_goes_on_bit_for_bit(small, tmp_path, monkeypatch, phase, epoch):
    train_run(OPTIONS, tmp_path / "whole")

    def stop(*at):
        if at[:3] == (phase, epoch, 24):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(OPTIONS, tmp_path / "parts", observer=Told(batch=stop), save_every=0)
    if phase == "quantized":
        monkeypatch.setattr(lab_traces, "hessian_traces", None)  # what was measured is kept
    resume_run(tmp_path / "parts")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    expected, found = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert expected.keys() == found.keys() and all(torch.equal(value, found[name]) for name, value in expected.items())


def test_it_starts_from_a_run_of_double_rounding(small, tmp_path):
    first = Options.for_recipe("double-rounding", bits=BITS, epochs=2, float_epochs=1, batch_size=12,
                               learning_rate=0.01, seed=3)
    before = train_run(first, tmp_path / "first")
    seen = []
    options = replace(OPTIONS, start_from=str(tmp_path / "first"), learning_rate=1e-30, uniform_epochs=0)
    result = train_run(options, tmp_path / "next", observer=Told(record=seen.append))
    assert {record["phase"] for record in seen} == {"quantized", "result"}
    assert result.float_accuracy == before.float_accuracy
    trained, started = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("first", "next"))
    assert torch.equal(started["7.by_pair.8,4.weight"], trained["7.by_bits.4.weight"])
    assert torch.equal(started["6.weight"], trained["6.weight"])
    assert (tmp_path / "next/float.safetensors").read_bytes() == (tmp_path / "first/float.safetensors").read_bytes()
    for other, match in (({"bits": (8, 2)}, r"start_from must hold a run at the same bits, \[8, 2\], got \[8, 4, 2\]"),
                         ({"quantizer": "learned"}, "start_from must hold a run with the same quantizers"),
                         ({"start_from": str(tmp_path / "none")}, "path must be a file")):
        with pytest.raises(ValueError, match=match):
            train_run(replace(options, **other), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("changes, match", [
    ({"cuda_graph": True}, "cuda_graph must be off with recipe hasb, whose layers change their bit-widths"),
    ({"compile": True}, "compile must be off with recipe hasb"),
    ({"schedule": "accumulate"}, "schedule must be each with recipe hasb, got 'accumulate'"),
    ({"batch_norm": "shared"}, "batch_norm must be transitional or per_bit with recipe hasb, .* got 'shared'"),
    ({"uniform_epochs": 4}, "uniform_epochs must be below epochs, 4, got 4"),
    ({"switch_rate": 1.5}, "switch_rate must be finite and at most 1, got 1.5"),
    ({"switch_rate": math.nan}, "switch_rate must be finite and at least 0, got nan"),
    ({"recipe": "plain"}, "uniform_epochs must be left alone unless recipe is hasb, got 2 with 'plain'"),
])
def test_options_that_cannot_be(changes, match):
    with pytest.raises(ValueError, match=f"options: {match}"):
        replace(OPTIONS, **changes)


def test_mbq_train_end_to_end(tmp_path):
    tiny = ["--data", "digits", "--train-limit", "256", "--test-limit", "128", "--batch-size", "128", "--epochs", "3",
            "--float-epochs", "1", "--uniform-epochs", "1", "--hessian-images", "32", "--hessian-probes", "2"]
    shown = mbq("train", "--recipe", "hasb", "--bits", "8,4,2", *tiny, "--out", tmp_path, "--json")
    assert shown.exit_code == 0, shown.stderr
    result = json.loads(shown.stdout)
    assert list(result["accuracy"]) == ["8", "4", "2"]
    assert [entry["bits"] for entry in result["recipe"]["mixed"]] == [8, 4, 2]
    plan = (tmp_path / "conversion.txt").read_text()
    assert "transitional  of blocks.0.conv1, with no quantized layer before" in plan
    again = mbq("eval", tmp_path, "--json")
    assert json.loads(again.stdout)["accuracy"] == result["accuracy"]
    assert mbq("train", "--recipe", "hasb", *tiny, "--batch-norm", "shared", "--out", tmp_path / "wrong").exit_code == 2
