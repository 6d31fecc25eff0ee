"""Killed and interrupted runs go on as if nothing had happened."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from networks import interruptible, one_thread  # noqa: F401
from small_data import Told, halves
from torch import nn

from mbq_lab import Options, evaluate_run, resume_run, train_run
from mbq_lab.runs import networks as run_networks
from mbq_lab.training.interrupt import Interrupted, stop_requests
from mbq_train import load_checkpoint
from mbq_train.checkpoint import load_metadata

OPTIONS = Options(bits=(4, 2), model="test_lab_resume:network", epochs=3, float_epochs=2, batch_size=12, distill=0.7,
                  seed=3)
KILLS = 20
NOT_METRICS = ("seconds", "images_per_second", "step_ms", "quantization")


def network():
    """With dropout, so that the state of the random numbers matters."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
                         nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 2))


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(run_networks, "load_data", lambda *args, **options: halves(augment=("crop", "flip")))


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in NOT_METRICS} for record in records]


def tensors(folder, name):
    from safetensors.torch import load_file

    return load_file(folder / name)


@pytest.fixture(scope="module", params=["each", "accumulate"])
def unbroken(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_networks, "load_data", lambda *args, **options: halves(augment=("crop", "flip")))
        folder = tmp_path_factory.mktemp("unbroken")
        options = replace(OPTIONS, schedule=request.param, weight_bank=request.param == "accumulate")
        train_run(options, tmp_path_factory.mktemp("first"))  # the first run of a process imports and compiles
        start = time.monotonic()
        train_run(options, folder)
        return options, folder, time.monotonic() - start


def same_as(unbroken, folder):
    assert metrics(folder) == metrics(unbroken)
    for name in ("checkpoint.safetensors", "float.safetensors"):
        expected, got = tensors(unbroken, name), tensors(folder, name)
        assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected)


def in_a_process(function, *args):
    """Start `function` in a forked process, which has torch and the tests imported already."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def go(options, folder):
    """Start or resume, with a checkpoint after every step."""
    torch.set_num_threads(1)
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists() and load_metadata(checkpoint)["phase"] == "finished":
        return  # killed after its last write
    if (folder / "config.json").exists():
        resume_run(folder, save_every=0)
    else:
        train_run(options, folder, save_every=0)


def test_a_run_killed_at_random_moments_ends_as_the_unbroken_one(unbroken, tmp_path):
    options, folder, seconds = unbroken
    moments = torch.rand(KILLS, generator=torch.Generator().manual_seed(0)).tolist()
    killed, phases = 0, set()
    while killed < KILLS:
        process = in_a_process(go, options, tmp_path)
        process.join(timeout=0.01 + 0.2 * seconds * moments[killed])
        if not process.is_alive():  # finished before the kill: begin another run
            assert process.exitcode == 0
            same_as(folder, tmp_path)
            for file in tmp_path.iterdir():
                file.unlink()
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
        if (tmp_path / "checkpoint.safetensors").exists():
            metadata = load_metadata(tmp_path / "checkpoint.safetensors")
            phases.add((metadata["phase"], metadata["state"]["epoch"], metadata["state"]["batch"]))
    go(options, tmp_path)
    same_as(folder, tmp_path)
    assert len(phases) >= 5  # the kills met the run in different places


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_steps_with_a_checkpoint(unbroken, tmp_path, number):
    options, folder, _ = unbroken

    def on_batch(phase, epoch, images, total):
        if (phase, epoch, images) == ("quantized", 1, 24):
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as stopped:
        train_run(options, tmp_path, observer=Told(batch=on_batch))
    assert stopped.value.signal == number
    metadata = load_metadata(tmp_path / "checkpoint.safetensors")
    assert (metadata["phase"], metadata["state"]["epoch"], metadata["state"]["batch"]) == ("quantized", 1, 2)
    assert len(evaluate_run(tmp_path).accuracy) == 2 and not evaluate_run(tmp_path).finished
    resume_run(tmp_path)
    same_as(folder, tmp_path)
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_the_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_what_cannot_be_resumed_is_an_error(unbroken, tmp_path):
    options, folder, _ = unbroken
    with pytest.raises(ValueError, match=r"config.json \(no such file\)"):
        resume_run(tmp_path)
    with pytest.raises(ValueError, match="resume_run: folder must hold a run that is not finished"):
        resume_run(folder)
    with pytest.raises(ValueError, match="must not hold a finished run"):
        train_run(options, folder)
    with pytest.raises(Interrupted):
        train_run(options, tmp_path, observer=Told(batch=lambda *_: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(ValueError, match="must not hold an unfinished run, .*mbq resume goes on with it"):
        train_run(options, tmp_path)
    with pytest.raises(ValueError, match="load_quantized: .* still training its float network"):
        evaluate_run(tmp_path)
    whole = (tmp_path / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="whole safetensors file, got .*checkpoint.safetensors"):
        resume_run(tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(whole)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"epochs": 3', '"epochs": 4'))
    with pytest.raises(ValueError, match="options must be what the run was started with, got epochs 4 instead of 3"):
        resume_run(tmp_path)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "metrics.jsonl").write_text("damaged")
    resume_run(tmp_path)
    same_as(folder, tmp_path)
    assert load_checkpoint(tmp_path / "float.safetensors", network()) == {}
