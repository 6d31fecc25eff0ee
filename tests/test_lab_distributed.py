"""Two processes train as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import one_thread  # noqa: F401
from safetensors.torch import load_file
from small_data import halves
from torch import nn

from mbq_lab import Options, train_run
from mbq_lab.runs import networks as run_networks
from mbq_lab.runs import run
from mbq_train import own_layer_bits

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {"bits": (8, 2), "model": "test_lab_distributed:network", "epochs": 2, "float_epochs": 1, "batch_size": 12,
           "learning_rate": 0.01, "optimizer": "sgd", "clip_norm": 1.0}
SCHEDULES = {"each": {"schedule": "each", "distill": 0.7},
             "accumulate": {"schedule": "accumulate", "weight_bank": True},
             "coresets": {"recipe": "emqnet", "score_epochs": 1, "prune_rate": 0.5, "weight_correction": True}}
MSQ = {"recipe": "msq", "bits": (8,), "quantizer": "round-clamp", "epochs": 5, "prune_interval": 1,
       "prune_threshold": 0.9, "target_compression": 8.0, "hessian_images": 32, "hessian_probes": 4, "keep_float": ()}


def network():
    """Without BatchNorm, whose statistics are each process's own on CPU."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 2))


def train(schedule: str, folder: Path):
    """One process's part; every process writes the parameters it ends with."""
    run_networks.load_data = lambda *args, **options: halves()
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    save = run.Training.run

    def keep(training, **callbacks):
        save(training, **callbacks)
        own = {f"layer_bits.{name}": torch.tensor(bits) for name, bits in own_layer_bits(training.model).items()}
        torch.save({name: value.detach() for name, value in training.model.named_parameters()} | own,
                   folder / f"{rank}.pt")

    run.Training.run = keep
    train_run(Options(**OPTIONS | (SCHEDULES | {"msq": MSQ})[schedule]), folder / "run")


def train_in_two_processes(schedule: str, folder: Path):
    """What each of them ends with."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "python", ROOT / "tests")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
               str(29600 + os.getpid() % 300), __file__, schedule, str(folder)]
    folder.mkdir()
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_processes_have_one_set_of_scales_and_the_loss_of_one(schedule, tmp_path):
    first, second = train_in_two_processes(schedule, tmp_path / "two")
    (tmp_path / "one").mkdir()
    original = run_networks.load_data, run.Training.run
    try:
        train(schedule, tmp_path / "one")
    finally:
        run_networks.load_data, run.Training.run = original
    scales = [name for name in first if ".scales." in name]
    assert len(scales) == 2 * 2 * 2 and all(torch.equal(first[name], second[name]) for name in first)
    one, two = ([json.loads(line) for line in (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()]
                for name in ("one", "two"))
    for expected, got in zip(one[:3], two[:3], strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=2e-4)
    expected, got = (load_file(tmp_path / name / "run" / "checkpoint.safetensors") for name in ("one", "two"))
    for name in scales:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-6)


def test_two_processes_take_the_same_bits_away(tmp_path):
    first, second = train_in_two_processes("msq", tmp_path / "two")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    bits = [value.item() for name, value in first.items() if name.startswith("layer_bits.")]
    assert len(bits) == 4 and sum(bits) < 4 * 8


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]))
