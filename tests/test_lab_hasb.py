"""The recipe hasb, from the float network to a supernet."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cli import mbq
from networks import interruptible, one_thread  # noqa: F401
from safetensors.torch import load_file
from small_data import Told, halves
from transitional_networks import BITS, chain, converted

from mbq_lab import Options, evaluate, resume_run, train_run
from mbq_lab.recipes.hasb import Hasb
from mbq_lab.runs import networks as run_networks
from mbq_lab.training import traces as lab_traces
from mbq_lab.training.loop import Training
from mbq_lab.training.optimizers import build_optimizer, rate_at
from mbq_train import BitRoulette, clamp_scales, own_layer_bits, set_bits, set_layer_bits, spread_batch_norms
from mbq_train.quantize.layers import weight_layers
from mbq_train.training.optimizers import set_rate

OPTIONS = Options.for_recipe("hasb", bits=BITS, epochs=4, uniform_epochs=2, float_epochs=2, batch_size=12,
                             learning_rate=0.01, switch_rate=1.0, hessian_images=24, hessian_probes=3, seed=3)
NOT_METRICS = ("seconds", "images_per_second", "step_ms")


@pytest.fixture(scope="module")
def data():
    return halves()


def test_the_recipe_is_what_ones_own_loop_does(data):
    options = replace(OPTIONS, scale_rates="constant", distill=0.0)
    training = Training(converted(), data, BITS, options, recipe=Hasb)
    training.run()
    model = converted()
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
    model, records, states = converted(), [], []

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
    first, spread, _, mixed = states
    assert not first["8,4"].equal(first["4,4"]) and spread["8,4"].equal(spread["4,4"]) and first["8,4"].equal(
        first["4,2"])  # pairs of different bit-widths wait for the end of the uniform epochs
    assert sum(not mixed[key].equal(spread[key]) for key in mixed if len(set(key.split(","))) == 2) >= 4
    summary = training.recipe.summary()["mixed"]
    assert [entry["bits"] for entry in summary] == list(BITS)
    for entry in summary:
        assert entry["layer_bits"].keys() == weight_layers(model).keys() and entry["accuracy"] > 0.5
        assert entry["mean_bits"] == sum(entry["layer_bits"].values()) / 2
    assert own_layer_bits(model) == {} and all(evaluate(model, data, bits) > 0.9 for bits in BITS)


def make_small(patch):
    patch.setattr(run_networks, "load_data", lambda *args, **options: halves(augment=("crop", "flip")))
    patch.setattr(run_networks, "build_model", lambda *args, **options: chain())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        folder = tmp_path_factory.mktemp("whole")
        train_run(OPTIONS, folder)
        return folder


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in NOT_METRICS} for record in records]


@pytest.mark.parametrize("phase, epoch", [("float", 1), ("quantized", 0), ("quantized", 1), ("quantized", 3)])
def test_a_run_stopped_in_any_stage_goes_on_bit_for_bit(whole, tmp_path, monkeypatch, phase, epoch):
    make_small(monkeypatch)

    def stop(*at):
        if at[:3] == (phase, epoch, 24):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(OPTIONS, tmp_path, observer=Told(batch=stop), save_every=0)
    if phase == "quantized":
        monkeypatch.setattr(lab_traces, "hessian_traces", None)  # what was measured is kept
    resume_run(tmp_path)
    assert metrics(tmp_path) == metrics(whole)
    expected, found = (load_file(folder / "checkpoint.safetensors") for folder in (whole, tmp_path))
    assert expected.keys() == found.keys() and all(torch.equal(value, found[name]) for name, value in expected.items())


def test_it_starts_from_a_run_of_double_rounding(monkeypatch, tmp_path):
    make_small(monkeypatch)
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
                         ({"start_from": str(tmp_path / "next"), "batch_norm": "per_bit"},
                          "start_from must hold a run whose norms fit, .*: bit-widths of 7 must be 8, 4, 2, 32, got"),
                         ({"start_from": str(tmp_path / "wrong")}, "start_from must be another folder"),
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
