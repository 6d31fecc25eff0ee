"""Trackers get the numbers of every record by their names, through libraries that are stood in for here."""

import sys
from types import ModuleType

import pytest
from cli import TINY, mbq
from networks import interruptible, one_thread  # noqa: F401

from mbq_lab import Options
from mbq_lab.command.trackers import scalars, trackers_of

EPOCH = {"phase": "quantized", "epoch": 3, "loss": {8: 0.5, 1: 0.75}, "accuracy": {"8": 0.9}, "learning_rate": 0.01,
         "images_per_second": 100, "layer_bits": {"a": 4}, "lsb_rates": {"a": 0.25}, "scores": {8: {"mean": 1.0}}}
EXPECTED = {"quantized/loss/8 bits": 0.5, "quantized/loss/1 bit": 0.75, "quantized/accuracy/8 bits": 0.9,
            "quantized/learning_rate": 0.01, "quantized/images_per_second": 100.0, "quantized/layer_bits/a": 4.0,
            "quantized/lsb_rates/a": 0.25}


class Library(ModuleType):
    """Both libraries, as far as they are used: everything that is written, in `seen`."""

    def __init__(self, name):
        super().__init__(name)
        self.seen, self.closed, self.began = [], 0, []

    def SummaryWriter(self, folder):
        self.began.append(folder)
        return self

    def init(self, **options):
        self.began.append(options)
        return self

    def add_scalar(self, name, value, step):
        self.seen.append((name, value, step))

    def log(self, values):
        self.seen.append(values)

    def close(self):
        self.closed += 1

    finish = close


@pytest.fixture
def libraries(monkeypatch):
    found = {name: Library(name) for name in ("torch.utils.tensorboard", "wandb")}
    for name, library in found.items():
        monkeypatch.setitem(sys.modules, name, library)
    return found.values()


def test_numbers_have_names():
    assert scalars(EPOCH) == EXPECTED
    assert scalars({"phase": "float", "epoch": 1, "loss": {32: 2.0}}) == {"float/loss/float path": 2.0}


def test_each_tracker_gets_them_in_its_own_way(libraries, tmp_path):
    tensorboard, wandb = libraries
    for tracker in trackers_of("tensorboard,wandb", tmp_path / "digits", Options()):
        tracker.close()  # nothing is open before the first record
        tracker.record(EPOCH)
        tracker.close()
    assert tensorboard.seen == [(name, value, 3) for name, value in EXPECTED.items()] and tensorboard.closed == 1
    assert tensorboard.began == [str(tmp_path / "digits")]
    assert wandb.seen == [{**EXPECTED, "epoch": 3}] and wandb.closed == 1
    assert wandb.began[0]["name"] == "digits" and wandb.began[0]["config"] == Options().to_json()


def test_a_run_tells_its_trackers(libraries, tmp_path):
    few = ["--train-limit", "128", "--test-limit", "20"]
    result = mbq("train", *TINY, *few, "--trackers", "tensorboard,wandb", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    tensorboard, wandb = libraries
    names = {name for name, _, _ in tensorboard.seen}
    assert {"float/loss/float path", "quantized/accuracy/2 bits", "result/step_ms"} <= names
    assert len(wandb.seen) == 3 and tensorboard.closed == wandb.closed == 1


@pytest.mark.parametrize("name, module", [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_a_line_that_says_how_to(name, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    result = mbq("train", *TINY, "--trackers", name, "--out", tmp_path / "run")
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    assert result.stderr == f"error: --trackers must be installed, got {name}, which is not: pip install {name}\n"
