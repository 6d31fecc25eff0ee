"""What a training would refuse after hours is refused before it begins, by a dry run too."""

import copy
import importlib.util

import pytest
import torch
from networks import NormAct, interruptible, one_thread, tiny_model  # noqa: F401
from small_data import halves
from torch import nn
from typer.testing import CliRunner

from mbq_lab import dry_run, train_run
from mbq_lab.command.app import app
from mbq_lab.options import Options
from mbq_lab.runs import networks as run_networks
from mbq_lab.runs.checks import check_run

EMQNET = {"recipe": "emqnet", "bits": (32, 4, 2), "epochs": 3, "float_epochs": 1, "score_epochs": 1, "batch_size": 8,
          "prune_rate": 0.4, "learning_rate": 0.01}
PLAIN = {"recipe": "plain", "bits": (4, 2), "epochs": 1, "float_epochs": 1, "batch_size": 8}
MSQ = {"recipe": "msq", "epochs": 9, "float_epochs": 1, "batch_size": 8, "prune_interval": 1, "target_compression": 5.0}


def of_network(monkeypatch, network, **sizes):
    monkeypatch.setattr(run_networks, "load_data", lambda *args, **options: halves(**sizes))
    monkeypatch.setattr(run_networks, "build_model", lambda *args, **options: network())


def refused_twice(monkeypatch, tmp_path, network, match, options, **sizes):
    of_network(monkeypatch, network, **sizes)
    options = Options.for_recipe(**options)
    with pytest.raises(ValueError, match=match) as dry:
        dry_run(options)
    with pytest.raises(ValueError, match=match) as real:
        train_run(options, tmp_path / "run")
    assert str(dry.value) == str(real.value) and len(str(real.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def with_subclass():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), NormAct(4), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def with_batch_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
                         nn.Linear(8, 2))


class Squeezed(nn.Module):
    """Loses the dimension of the samples where there is one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = tiny_model()

    def forward(self, x):
        return self.layers(x).squeeze()


class Centred(nn.Module):
    """Mixes the samples of a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.inner, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(64, 2)

    def forward(self, x):
        x = self.inner(self.stem(x).relu())
        return self.head((x - x.mean(0)).relu().flatten(1))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad


class NotTwice(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = tiny_model()

    def forward(self, x):
        return Once.apply(self.layers(x))


@pytest.mark.filterwarnings("ignore:.*inputs are negative")
def test_a_norm_that_is_a_subclass_is_scored(monkeypatch, tmp_path):
    of_network(monkeypatch, with_subclass)
    options = Options.for_recipe(**EMQNET)
    dry_run(options)
    train_run(options, tmp_path / "run")
    assert '"scores"' in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("options, sizes, images", [
    (PLAIN, {"train": 65}, 65), (PLAIN | {"batch_size": 1}, {}, 60), (PLAIN | {"batch_size": 59}, {}, 60),
    (EMQNET | {"prune_rate": 0.45}, {}, 33),
], ids=["last batch", "every batch", "second batch", "coreset"])
def test_a_batch_of_one_image_with_batch_norm(monkeypatch, tmp_path, options, sizes, images):
    limit = "train_limit, prune_rate" if options["recipe"] == "emqnet" else "train_limit"
    match = (f"train: {limit} and batch_size must leave no batch of a single image, which this network cannot take, "
             f"got batches of {options['batch_size']} for {images} images .Expected more than 1 value")
    refused_twice(monkeypatch, tmp_path, with_batch_norm, match, options, **sizes)


def test_a_batch_of_one_image_where_nothing_needs_more(monkeypatch):
    of_network(monkeypatch, tiny_model, train=65, test=17)
    dry_run(Options.for_recipe(**PLAIN))
    of_network(monkeypatch, with_batch_norm, train=66, test=17)
    dry_run(Options.for_recipe(**PLAIN))


@pytest.mark.parametrize("sizes, option", [({"train": 65}, "train_limit"), ({"test": 17}, "test_limit")])
def test_a_network_that_loses_the_dimension_of_the_samples(monkeypatch, tmp_path, sizes, option):
    match = f"train: {option} and batch_size must leave no batch of a single image.*shape .2,."
    refused_twice(monkeypatch, tmp_path, Squeezed, match, PLAIN, **sizes)


def test_a_layer_behind_the_mixing_of_samples_can_be_scored(monkeypatch):
    of_network(monkeypatch, Centred)
    dry_run(Options.for_recipe(**EMQNET, score="last_layer"))


def test_a_network_whose_samples_mix_cannot_be_scored(monkeypatch, tmp_path):
    refused_twice(monkeypatch, tmp_path, Centred, "train: score must be one that the network allows, got 'grand' "
                  ".GradNormScorer: samples must lie.*; el2n and tdds need its outputs alone", EMQNET)
    for other in ({"score": "el2n"}, {"sampling": "random"}):
        dry_run(Options.for_recipe(**EMQNET, **other))


def test_a_network_without_second_derivatives_has_no_traces(monkeypatch, tmp_path):
    refused_twice(monkeypatch, tmp_path, NotTwice, "train: hessian must be off for a network whose traces cannot be "
                  "measured, got NotTwice .*autograd.Function", MSQ)
    dry_run(Options.for_recipe(**MSQ, hessian=False))


def test_the_checks_change_nothing(monkeypatch, tmp_path):
    of_network(monkeypatch, with_subclass)
    options = Options.for_recipe(**EMQNET, quantizer="learned")
    data, model = run_networks.data_and_float_network(options, torch.device("cpu"))
    state, numbers = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    plan = check_run(options, data, model)
    assert torch.equal(torch.random.get_rng_state(), numbers) and model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    converted = {name: value for name, value in plan.model.state_dict().items() if name.endswith("initialised")}
    assert converted and not any(value.any() for value in converted.values())


def test_a_folder_with_a_run_is_refused_by_a_dry_run(monkeypatch, tmp_path):
    of_network(monkeypatch, tiny_model)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    options = ["train", "--dry-run", "--bits", "4,2", "--batch-size", "32", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --out must not hold an unfinished run")
    assert CliRunner().invoke(app, [*options, "--overwrite"]).exit_code == 0
    assert (tmp_path / "run" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("package", ["matplotlib", "safetensors"])
def test_a_package_that_the_end_of_a_run_needs_is_missed_before_it_begins(package, monkeypatch, tmp_path):
    of_network(monkeypatch, tiny_model)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ImportError, match=f"train: the package {package} must be installed, got none: pip install"):
        train_run(Options(**PLAIN), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_training_set_is_a_warning(monkeypatch):
    of_network(monkeypatch, tiny_model)
    with pytest.warns(RuntimeWarning, match="batch_size should be at most the 60 training images, got 64"):
        dry_run(Options(**PLAIN | {"batch_size": 64}))
