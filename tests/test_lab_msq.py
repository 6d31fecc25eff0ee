"""MSQ: the recipe in a run."""

import json
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from msq_networks import OPTIONS, SMALL, network
from networks import one_thread, small_network, tiny_model  # noqa: F401
from small_data import Told, halves
from torch import nn
from typer.testing import CliRunner

import mbq_store
from mbq_lab import Options, resume_run, train_run
from mbq_lab.command.app import app
from mbq_lab.recipes.msq import Msq
from mbq_lab.runs import networks as run_networks
from mbq_lab.runs.networks import load_data_and_network
from mbq_lab.runs.sensitivity import sensitivity_of_run
from mbq_lab.training import traces
from mbq_lab.training.loop import Training
from mbq_train import RoundClamp, convert
from mbq_train.quantize.layer_bits import own_layer_bits
from mbq_train.quantize.round_clamp import round_clamp_layers
from mbq_train.training.divergence import TrainingError


@pytest.fixture(scope="module")
def data():
    return halves()


def test_bits_fall_until_the_target_and_then_stay(data):
    model, records = network(), []
    training = Training(model, data, (8,), SMALL, recipe=Msq)
    training.run(on_epoch=records.append)
    widths = [record["layer_bits"] for record in records]
    compressions = [record["compression"] for record in records]
    assert all(after[name] <= before[name] for before, after in pairwise(widths) for name in before)
    assert 4.0 <= compressions[0] < 8.0 <= compressions[-1] and compressions == sorted(compressions)
    reached = next(i for i, value in enumerate(compressions) if value >= 8.0)
    assert 0 < reached < 7 and all(width == widths[reached] for width in widths[reached:])
    assert set(records[0]["lsb_rates"]) == set(widths[0]) and records[-1]["lsb_rates"] == {}
    assert own_layer_bits(model) == widths[-1] and training.recipe.lsb_bank.low_bits == {}
    summary = training.recipe.summary()
    counts = {name: layer.weight.numel() for name, layer in round_clamp_layers(model).items()}
    stored = sum(counts[name] * bits for name, bits in widths[-1].items())
    assert summary["compression"] == pytest.approx(32 * sum(counts.values()) / stored) == compressions[-1]
    every = sum(parameter.numel() for parameter in small_network().parameters())
    assert summary["compression_of_all_parameters"] == pytest.approx(
        32 * every / (stored + 32 * (every - sum(counts.values()))))


@pytest.mark.parametrize("form, bits", [("offset", 8), ("sign-magnitude", 7)])  # bins of the same width
def test_the_penalty_empties_the_last_bits(data, form, bits):
    rates = {}
    for strength in (0.0, 3e-3):
        options = replace(SMALL, bits=(bits,), lsb_penalty=strength, prune_interval=7, hessian=False,
                          target_compression=32 / (bits - 0.9))
        records = []
        Training(network(bits, form=form), data, (bits,), options, recipe=Msq).run(on_epoch=records.append)
        last = [rate for record in records[4:7] for rate in record["lsb_rates"].values()]
        rates[strength] = sum(last) / len(last)
    assert rates[3e-3] < rates[0.0] - 0.1 and 0.3 < rates[0.0] < 0.7


def test_a_target_that_training_does_not_reach_is_said(data):
    options = replace(SMALL, prune_threshold=1e-6, lsb_penalty=0.0)
    training = Training(network(), data, (8,), options, recipe=Msq)
    with pytest.warns(RuntimeWarning, match=r"msq: the target compression, 8, was not reached: 4.00 after"):
        training.run()


@pytest.mark.parametrize("changes, message", [
    ({"target_compression": 33.0}, "target_compression must be at most 32, for 7 prunings of 2 from 8 bits end at 1,"),
    ({"target_compression": 4.0}, "target_compression must be above 4, which 8 bits have before any pruning, got 4"),
    ({"bits": (2,)}, "target_compression must be above 16, which 2 bits have before any pruning, got 16"),
    ({"lowest_bits": 3}, "target_compression must be at most 10.66, for 7 prunings of 2 from 8 bits end at 3, got 16"),
    ({"epochs": 4, "hessian": False}, "must be at most 6.4, for 3 prunings of 1 from 8 bits end at 5, got 16"),
    ({"bits": (8, 4)}, "bits must be the one bit-width that weights begin with, and quantizer round-clamp, with"),
    ({"quantizer": "learned"}, "bits must be the one bit-width that weights begin with, and quantizer round-clamp"),
    ({"cuda_graph": True}, "cuda_graph must be off with recipe msq, whose bit-widths change"),
    ({"bits": (2,), "lowest_bits": 4}, "lowest_bits must be at most bits, 2, got 4"),
    ({"recipe": "plain", "target_compression": 8.0}, "target_compression must be left alone unless recipe is msq"),
])
def test_options_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Options.for_recipe(**({"recipe": "msq", "epochs": 8, "prune_interval": 1} | changes))


@pytest.fixture
def tiny_run(monkeypatch):
    monkeypatch.setattr(run_networks, "load_data", lambda *args, **options: halves())
    monkeypatch.setattr(run_networks, "build_model", lambda *args, **options: tiny_model())
    return replace(SMALL, keep_float=(), epochs=6)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_stopped_while_it_prunes_goes_on_bit_for_bit(tiny_run, tmp_path, monkeypatch, epoch):
    whole, parts = [], []
    train_run(tiny_run, tmp_path / "whole", observer=Told(record=whole.append))

    def stop(phase, at, images, total):
        if (phase, at, images) == ("quantized", epoch, 24):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(tiny_run, tmp_path / "parts", observer=Told(record=parts.append, batch=stop))
    monkeypatch.setattr(traces, "hessian_traces", None)  # what was measured is kept
    resume_run(tmp_path / "parts", observer=Told(record=parts.append))
    keep = ("phase", "epoch", "loss", "accuracy", "layer_bits", "lsb_rates", "compression")
    assert [{key: record.get(key) for key in keep} for record in parts] == [
        {key: record.get(key) for key in keep} for record in whole]
    assert len({json.dumps(record["layer_bits"]) for record in whole if "layer_bits" in record}) >= 3
    assert (tmp_path / "parts/layers.png").stat().st_size > 1000


def test_traces_are_measured_once_for_the_same_weights(tiny_run, tmp_path, data):
    model = convert(tiny_model(), (8,), keep_float=(), weights=RoundClamp())
    first = traces.float_traces(model, data, tiny_run, folder=tmp_path)
    kept = json.loads((tmp_path / "sensitivity.json").read_text())
    kept["layers"]["0"]["value"] = 123.0
    (tmp_path / "sensitivity.json").write_text(json.dumps(kept))
    assert traces.float_traces(model, data, tiny_run, folder=tmp_path)["0"].value == 123.0
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] += 1e-3
    again = traces.float_traces(model, data, tiny_run, folder=tmp_path)
    assert again["0"].value not in (123.0, first["0"].value)
    (tmp_path / "sensitivity.json").write_text("{damaged")
    assert traces.float_traces(model, data, tiny_run, folder=tmp_path) == again
    assert traces.float_traces(model, data, replace(tiny_run, seed=1), folder=tmp_path) != again


@pytest.mark.parametrize("images, sizes", [(1, [1]), (32, [32]), (40, [32, 8]), (1000, [32, 28])])
def test_traces_are_measured_on_as_many_images_as_asked(data, images, sizes):
    batches = traces._batches(data, replace(OPTIONS, hessian_images=images))
    assert [len(part) for batch in batches for part in batch] == [size for size in sizes for _ in range(2)]


def test_the_command_shows_the_sensitivities_of_a_run(tiny_run, tmp_path):
    train_run(tiny_run, tmp_path / "run")
    kept = json.loads((tmp_path / "run/sensitivity.json").read_text())
    kept["layers"]["3"]["value"] = 1234.0  # the run's own traces are shown
    (tmp_path / "run/sensitivity.json").write_text(json.dumps(kept))
    found = sensitivity_of_run(tmp_path / "run")
    assert found.traces["3"].value == 1234.0 and list(found.at_bits) == [8, 4, 2]
    assert 0 < found.at_bits[8]["3"] < found.at_bits[4]["3"] < found.at_bits[2]["3"]
    shown = CliRunner().invoke(app, ["sensitivity", str(tmp_path / "run"), "--bits", "6,3"])
    assert shown.exit_code == 0 and "1.23e+03" in shown.output and "at 3 bits" in shown.output.replace("\n", " ")
    assert (tmp_path / "run/sensitivity.png").stat().st_size > 1000
    missing = CliRunner().invoke(app, ["sensitivity", str(tmp_path / "none")])
    assert missing.exit_code == 2 and "no such file" in missing.output


@pytest.mark.parametrize("model", ["vit_t", "mobilenetv2"])
def test_transformers_and_mobile_networks_through_the_same_command(tmp_path, model):
    run = CliRunner().invoke(app, list(map(str, [
        "train", "--recipe", "msq", "--data", "digits", "--model", model, "--train-limit", 10, "--test-limit", 10,
        "--batch-size", 10, "--float-epochs", 1, "--epochs", 2, "--prune-interval", 1, "--target-compression", 4.3,
        "--prune-threshold", 1, "--hessian-images", 8, "--hessian-probes", 2, "--out", tmp_path / "run"])))
    assert run.exit_code == 0, run.output
    result = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["recipe"]
    assert result["compression"] >= 4.3 and len(result["layer_bits"]) >= 48
    store = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--store", str(tmp_path / "store"), "--layout",
                                     "packed"])
    assert store.exit_code == 0, store.output


def test_the_form_of_a_run(tiny_run, tmp_path):
    """It comes from the options, serves training, evaluation and export, and a resumed run."""
    train_run(replace(tiny_run, form="sign-magnitude"), tmp_path / "run")
    options, _, model = load_data_and_network(tmp_path / "run")
    layers = round_clamp_layers(model)
    assert options.form == "sign-magnitude"
    assert {layer.weight_quantizer.form for layer in layers.values()} == {options.form}
    stored = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--store", str(tmp_path / "store")])
    assert stored.exit_code == 0, stored.output
    with mbq_store.open(tmp_path / "store") as store:
        for name, layer in layers.items():
            assert store.layer(name).bits == own_layer_bits(model)[name] + 1
            assert np.array_equal(store.dequantize(name), layer.weight_quantizer(layer.weight).detach().numpy())
    wrong = CliRunner().invoke(app, ["train", "--recipe", "msq", "--form", "signed", "--out", str(tmp_path / "wrong")])
    assert wrong.exit_code == 2 and "must be one of offset, sign-magnitude" in " ".join(wrong.output.split())


def test_layers_that_share_a_weight_are_each_stored(data):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 2)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.last(self.second(self.first(x.flatten(1)).relu()).relu())

    model = convert(Shared(), (8,), keep_float=(), weights=RoundClamp())
    training = Training(model, data, (8,), replace(SMALL, epochs=6), recipe=Msq)
    training.run()
    bits, summary = training.recipe.pruner.bits, training.recipe.summary()
    stored, biases = 64 * 64 * (bits["first"] + bits["second"]) + 128 * bits["last"], 64 + 64 + 2
    assert summary["compression_of_all_parameters"] == pytest.approx(
        32 * (2 * 64 * 64 + 128 + biases) / (stored + 32 * biases))


def test_a_model_without_round_clamp_is_an_error(data):
    with pytest.raises(ValueError, match="msq: model must hold layers that convert made .* got Sequential without any"):
        Training(convert(small_network(), (8,)), data, (8,), SMALL, recipe=Msq)
    mixed = network()
    mixed[3].weight_quantizer.form = "sign-magnitude"
    with pytest.raises(ValueError, match="msq: model must have one form in all layers, got offset, sign-magnitude"):
        Training(mixed, data, (8,), SMALL, recipe=Msq)


def test_weights_that_leave_the_numbers_are_named(data):
    options = replace(SMALL, optimizer="sgd", learning_rate=3e38, lsb_penalty=1.0, weight_decay=0.0)
    with pytest.raises(TrainingError, match="must be finite"):
        Training(network(), data, (8,), options, recipe=Msq).run()


def test_in_bfloat16_and_compiled_the_bits_fall_too(data):
    for options in (replace(SMALL, autocast="bfloat16"), replace(SMALL, compile=True, epochs=6)):
        training = Training(network(), data, (8,), options, recipe=Msq)
        training.run()
        assert training.recipe.pruner.compression >= 8


def test_no_warning_where_the_target_is_reached(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        Training(network(), data, (8,), SMALL, recipe=Msq).run()
