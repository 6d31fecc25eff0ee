"""The command mbq, end to end."""

import json
import os
import signal
import struct
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from cli import TINY, mbq
from networks import interruptible, one_thread  # noqa: F401

from mbq_lab import Options
from mbq_lab.command import progress


def copy_of(finished, tmp_path):
    for file in finished[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_train_prints_accuracies_and_time(finished):
    for text in ("float", "8 bits", "4 bits", "2 bits", "ms a step", str(finished[0])):
        assert text in finished[1].output


def test_train_writes_the_run(finished):
    folder = finished[0]
    assert sorted(file.name for file in folder.iterdir()) == [
        "accuracy.png", "checkpoint.safetensors", "config.json", "conversion.txt", "curves.png", "float.safetensors",
        "metrics.jsonl"]
    assert "keep_float: first as called with the example" in (folder / "conversion.txt").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["bits"] == [8, 4, 2] and config["epochs"] == 1 and config["model"] == "resnet8"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["float", "quantized", "result"]
    for name in ("accuracy.png", "curves.png"):
        image = (folder / name).read_bytes()
        width, height = struct.unpack(">II", image[16:24])
        assert image[:8] == b"\x89PNG\r\n\x1a\n" and width > 100 and height > 100


def test_eval_prints_the_accuracies_of_training(finished):
    result = mbq("eval", finished[0])
    last = json.loads((finished[0] / "metrics.jsonl").read_text().splitlines()[-1])
    assert result.exit_code == 0
    for value in (last["float_accuracy"], *last["accuracy"].values()):
        assert f"{100 * value:.2f}" in result.output


def test_a_finished_run_is_kept_unless_told_otherwise(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    before = (folder / "checkpoint.safetensors").read_bytes()
    result = mbq("train", *TINY, "--out", folder)
    assert result.exit_code == 2 and result.stderr.startswith("error: --out must not hold a finished run")
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    result = mbq("train", *TINY, "--out", folder, "--overwrite", "--bits", "3,1", "--batch-norm", "shared")
    assert result.exit_code == 0 and "3 bits" in result.output
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    assert mbq("eval", folder).exit_code == 0


@pytest.mark.parametrize("options, message", [
    (["--model", "resnet9"], "--model must be one of "),
    (["--data", "digit"], "--data must be one of "),
    (["--data", "/nothing/here"], "no such folder, /nothing/here (MBQ_DATA is "),
    (["--augment", "flop"], "--augment must be one of "),
    (["--bits", "4,8,2"], "--bits must go from high to low without repeats, got (4, 8, 2)"),
    (["--bits", "8,x"], "--bits must be integers separated by commas, got '8,x'"),
    (["--bits", "16"], "--bits must be between 1 and 8, or 32, got 16"),
    (["--float-epochs", "0"], "--float-epochs must be finite and at least 1, got 0"),
    (["--learning-rate", "nan"], "--learning-rate must be finite and above 0, got nan"),
    (["--batch-norm", "shard"], "--batch-norm must be one of per_bit, shared, transitional, got 'shard' (did you mean"),
    (["--keep-float", "first,liner"], "--keep-float must be one of "),
    (["--train-limit", "3"], "--train-limit must be in "),
    (["--cuda-graph"], "--cuda-graph must be off without a CUDA device"),
    (["--device", "tpu"], "--device must be cpu, cuda, cuda:N or auto, got 'tpu'"),
    (["--device", "cuda:99"], "--device must be usable here, got 'cuda:99'"),
    (["--trackers", "tensorbord"], "--trackers must be one of tensorboard, wandb, got 'tensorbord' (did you mean"),
    (["--epoch", "3"], "No such option: --epoch"),
    (["--epochs", "three"], "Invalid value for '--epochs'"),
    (["--distill", "0.7", "--bits", "4"], "--distill must be 0 with one bit-width"),
    (["--weight-bank"], "--weight-bank must be off unless schedule is accumulate"),
    (["--cuda-graph", "--compile"], "--cuda-graph and --compile must not both be on"),
], ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_wrong_options_are_one_line_and_write_nothing(tmp_path, options, message):
    result = mbq("train", *options, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}") and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    (tmp_path / "run").write_text("mine")
    result = mbq("train", *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 2 and result.stderr.startswith("error: --out must be a folder, got a file")
    assert (tmp_path / "run").read_text() == "mine"


def test_eval_names_what_is_wrong_with_a_run(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    whole = (folder / "checkpoint.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())

    def stderr():
        result = mbq("eval", folder)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
        return result.stderr

    (folder / "checkpoint.safetensors").write_bytes(whole[:-10])
    assert "path must be a whole safetensors file" in stderr()
    (folder / "checkpoint.safetensors").write_bytes((folder / "float.safetensors").read_bytes())
    assert "path must be the checkpoint of a run" in stderr()
    (folder / "checkpoint.safetensors").unlink()
    assert "checkpoint.safetensors (no such file)" in stderr()
    for change, message in (({"version": 0}, "version must be 2 or 3, got 0"),
                            ({"epochs": "3"}, "epochs must be of type int"),
                            ({"extra": 1}, "must be known, got extra"),
                            ({"bits": [4, 8, 2]}, "bits must go from high to low")):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        assert message in stderr()
    (folder / "config.json").write_text("{")
    assert "path must be a JSON file" in stderr()


def test_info_names_every_op():
    result = mbq("info")
    assert result.exit_code == 0 and "fake_quantize_multi" in result.output


def test_ctrl_c_ends_with_130_and_resume_goes_on(tmp_path):
    def interrupted_at(record):
        os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.ProgressLines, "record", lambda lines, record: interrupted_at(record))
        result = mbq("train", *TINY, "--out", folder)
    assert result.exit_code == 130 and f"stopped by SIGINT; mbq resume {folder} goes on" in result.stderr
    assert sorted(file.name for file in folder.iterdir()) == [
        "checkpoint.safetensors", "config.json", "conversion.txt", "metrics.jsonl"]
    result = mbq("train", *TINY, "--out", folder)
    assert result.exit_code == 2 and "must not hold an unfinished run" in result.stderr
    result = mbq("resume", folder)
    assert result.exit_code == 0 and "8 bits" in result.output
    assert [json.loads(line)["phase"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [
        "float", "quantized", "result"]
    result = mbq("resume", folder)
    assert result.exit_code == 2 and "must hold a run that is not finished" in result.stderr


def test_eval_measures_bit_widths_that_were_not_trained(finished):
    result = mbq("eval", finished[0], "--bits", "8,6,3")
    assert result.exit_code == 0 and "6 bits, not trained" in result.output and "3 bits, not trained" in result.output
    assert "8 bits, not" not in result.output and "float" in result.output
    assert mbq("eval", finished[0], "--bits", "3,6").exit_code == 2


def test_dry_run_prints_the_conversion_and_the_memory_and_writes_nothing(tmp_path):
    result = mbq("train", "--dry-run", "--schedule", "accumulate", "--weight-bank", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for text in ("keep_float", "quantize", "weight bank", "activations", "22 batches an epoch"):
        assert text in result.output
    assert not (tmp_path / "run").exists()


def test_every_option_of_a_run_is_an_option_of_the_command(tmp_path):
    shown = mbq("train", "--help").output
    for option in fields(Options):
        assert f"--{option.name.replace('_', '-')}"[:14] in shown


def test_divergence_is_one_line(tmp_path):
    result = mbq("train", *TINY, "--learning-rate", "1e30", "--out", tmp_path / "run")
    assert result.exit_code == 2 and "must be finite, got" in result.stderr and "32 bits" in result.stderr
    assert "at step" in result.stderr and not (tmp_path / "run" / "float.safetensors").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the cuda backend is not missing here")
def test_a_backend_that_is_missing_is_one_line(tmp_path):
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join(map(str, (root, root / "python")))
    command = [sys.executable, "-m", "mbq_lab.command", "train", *TINY, "--out", tmp_path / "run"]
    result = subprocess.run(command, capture_output=True, text=True,
                            env={**os.environ, "MBQ_BACKEND": "cuda", "PYTHONPATH": paths})
    errors = result.stderr[result.stderr.index("error: "):]
    assert result.returncode == 2 and "backend 'cuda' was asked for, but" in errors and len(errors.splitlines()) == 1
