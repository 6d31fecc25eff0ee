"""Options: defaults, bounds, names, and their way through JSON."""

import json
from dataclasses import replace

import pytest

import mbq_lab
from mbq_lab import Options
from mbq_lab.options import RECIPE_DEFAULTS
from mbq_lab.recipes import recipe_type, registry


def test_every_name_of_the_package_is_there():
    assert {"Options", "data_of", "evaluate", "train_run"} <= set(mbq_lab.__all__) <= set(dir(mbq_lab))
    for name in mbq_lab.__all__:
        assert getattr(mbq_lab, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'mbq_lab' has no attribute 'train_runs'"):
        _ = mbq_lab.train_runs


def test_options_go_through_json():
    options = replace(Options(), bits=(6, 3), rate="step", rate_epochs=(2, 5), schedule="accumulate", weight_bank=True)
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_values_that_mean_the_same_are_taken_in_the_options_type(tmp_path):
    options = Options(clip_norm=1, bits=[8, 2], data=tmp_path)
    assert type(options.clip_norm) is float and options.bits == (8, 2) and options.data == str(tmp_path)
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options


@pytest.mark.parametrize("change, match", [
    ({"epochs": 0}, "options: epochs must be finite and at least 1, got 0"),
    ({"learning_rate": 0.0}, "options: learning_rate must be finite and above 0, got 0.0"),
    ({"learning_rate": float("nan")}, "options: learning_rate must be finite and above 0, got nan"),
    ({"weight_decay": -1.0}, "options: weight_decay must be finite and at least 0, got -1.0"),
    ({"distill": 1.5}, "options: distill must be finite and at most 1, got 1.5"),
    ({"momentum": 1.0}, "options: momentum must be finite and below 1, got 1.0"),
    ({"optimizer": "adamv"}, r"options: optimizer must be one of adam, adamw, sgd, got 'adamv' \(did you mean"),
    ({"schedule": "eech"}, r"options: schedule .*did you mean 'each'"),
    ({"bits": (4, 8, 2)}, "options: bits must go from high to low"),
    ({"bits": (32,)}, r"options: bits must hold one below 32, got \(32,\)"),
    ({"bits": (16, 8)}, "options: bits must be between 1 and 8, or 32, got 16"),
    ({"recipe": "plane"}, r"options: recipe must be one of .*did you mean 'plain'"),
    ({"bits": (8, 8)}, "options: bits must go from high to low without repeats"),
    ({"rate_epochs": (3,)}, "options: rate_epochs must be empty unless rate is step, got rate 'cosine'"),
    ({"rate": "step"}, r"options: rate_epochs must be increasing epochs with rate step, got \(\)"),
    ({"rate": "step", "rate_epochs": (5, 2)}, "options: rate_epochs must be increasing"),
    ({"weight_bank": True}, "options: weight_bank must be off unless schedule is accumulate"),
    ({"cuda_graph": True, "optimizer": "sgd"}, "options: cuda_graph must be off with sgd"),
    ({"distill": 0.7, "bits": (4,)}, "options: distill must be 0 with one bit-width"),
    ({"epochs": "3"}, "options: epochs must be of type int, got '3'"),
    ({"cuda_graph": True, "compile": True}, "options: cuda_graph and compile must not both be on"),
], ids=str)
def test_options_out_of_range_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        replace(Options(), **change)


def test_bits_may_be_given_from_low_to_high_with_the_float_path():
    assert Options(bits=(1, 2, 4, 8, 32)).bits == (32, 8, 4, 2, 1)


def test_a_recipe_has_defaults_that_what_is_given_overrides(monkeypatch):
    monkeypatch.setitem(RECIPE_DEFAULTS, "plain", {"epochs": 7, "distill": 0.5})
    assert Options.for_recipe("plain", epochs=3) == replace(Options(), epochs=3, distill=0.5)
    assert Options(recipe="plain").epochs == 30
    with pytest.raises(ValueError, match="options: recipe must be one of .*did you mean 'plain'"):
        Options.for_recipe("plan")


def test_every_recipe_of_the_options_exists():
    assert {name: recipe_type(name) for name in RECIPE_DEFAULTS} == registry.RECIPES


@pytest.mark.parametrize("change, match", [
    ({"epochs": True}, "epochs must be of type int, got True"),
    ({"extra": 1}, "options: must be known, got extra"),
    ({"seed": None}, "seed must be of type int, got None"),
])
def test_json_of_another_version_is_named(change, match):
    with pytest.raises(ValueError, match=match):
        Options.from_json({**Options().to_json(), **change})


def test_json_that_lacks_a_younger_option_has_its_default():
    short = Options(epochs=7).to_json()
    del short["model"], short["form"]
    assert Options.from_json(short) == Options(epochs=7)
