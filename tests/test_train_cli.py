"""The command mbq, end to end."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mbq_train import run
from mbq_train.cli import app
from networks import one_thread  # noqa: F401
from typer.testing import CliRunner

TINY = ["--epochs", "1", "--float-epochs", "1", "--batch-size", "128"]


def mbq(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    result = mbq("train", *TINY, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def copy_of(finished, tmp_path):
    for file in finished[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_train_prints_both_tables(finished):
    for text in ("float", "8 bits", "4 bits", "2 bits", "eager PyTorch", "mbq_kernels", str(finished[0])):
        assert text in finished[1]


def test_train_writes_the_run(finished):
    folder = finished[0]
    assert sorted(file.name for file in folder.iterdir()) == [
        "accuracy.png", "checkpoint.safetensors", "config.json", "float.safetensors", "metrics.jsonl"]
    config = json.loads((folder / "config.json").read_text())
    assert config["bits"] == [8, 4, 2] and config["epochs"] == 1 and config["model"] == "resnet8"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["float", "quantized", "result"]
    assert lines[2]["quantization"]["calls"] == 2 * 8 * 3
    width, height = struct.unpack(">II", (folder / "accuracy.png").read_bytes()[16:24])
    assert (folder / "accuracy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and width > 100 and height > 100


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
    assert result.exit_code == 2 and "error: train_run: folder must not hold a finished run" in result.stderr
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    result = mbq("train", *TINY, "--out", folder, "--overwrite", "--bits", "3,1", "--batch-norm", "shared")
    assert result.exit_code == 0 and "3 bits" in result.output
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    assert mbq("eval", folder).exit_code == 0


@pytest.mark.parametrize("options, message", [
    (["--model", "resnet9"], "build_model: name must be one of resnet8, got 'resnet9' (did you mean 'resnet8'?)"),
    (["--data", "digit"], "load_data: name must be one of digits, got 'digit' (did you mean 'digits'?)"),
    (["--bits", "4,8"], "train_run: bits must go from high to low without repeats, got (4, 8)"),
    (["--bits", "8,x"], "mbq: bits must be integers separated by commas, got '8,x'"),
    (["--bits", "16"], "train_run: bits must be between 1 and 8, got 16"),
    (["--float-epochs", "0"], "train: float_epochs must be at least 1, got 0"),
    (["--learning-rate", "nan"], "train: learning_rate must be positive and finite, got nan"),
    (["--batch-norm", "shard"], "convert: batch_norm must be one of per_bit, shared, got 'shard' (did you mean"),
    (["--device", "tpu"], "check_device: device must be cpu, cuda or cuda:N, got 'tpu'"),
    (["--device", "cuda:99"], "check_device: device must be usable here, got 'cuda:99'"),
], ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_wrong_options_are_one_line_and_write_nothing(tmp_path, options, message):
    result = mbq("train", *options, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}") and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    (tmp_path / "run").write_text("mine")
    result = mbq("train", *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 2 and "folder must be a folder, got a file" in result.stderr
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
    assert "path must be a checkpoint of this ResNet8" in stderr()
    (folder / "checkpoint.safetensors").unlink()
    assert "checkpoint.safetensors (no such file)" in stderr()
    for change, message in (({"version": 0}, "version must be 1, got 0"),
                            ({"epochs": "3"}, "epochs must be of type int"),
                            ({"extra": 1}, "path must hold data, model"),
                            ({"bits": [2, 8]}, "bits must go from high to low")):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        assert message in stderr()
    (folder / "config.json").write_text("{")
    assert "path must be a JSON file" in stderr()


def test_info_names_every_op():
    result = mbq("info")
    assert result.exit_code == 0 and "fake_quantize_multi" in result.output


def test_ctrl_c_ends_with_130_and_whole_files(tmp_path, monkeypatch):
    epochs = []

    def interrupt(model, data, bits):
        epochs.append(bits)
        if len(epochs) == 3:  # evaluations: float in its epoch, float at the end, then 8 bits
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr(run, "evaluate", interrupt)
    result = mbq("train", *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 130 and "stopped by Ctrl-C" in result.stderr and epochs == [32, 32, 8]
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "config.json", "float.safetensors", "metrics.jsonl"]
    assert [json.loads(line)["phase"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [
        "float"]


def test_divergence_is_one_line(tmp_path):
    result = mbq("train", *TINY, "--learning-rate", "1e30", "--out", tmp_path / "run")
    assert result.exit_code == 2 and "must be finite, got" in result.stderr and "32 bits" in result.stderr
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the cuda backend is not missing here")
def test_a_backend_that_is_missing_is_one_line(tmp_path):
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join(map(str, (root, root / "python")))
    command = [sys.executable, "-m", "mbq_train.cli", "train", *TINY, "--out", tmp_path / "run"]
    result = subprocess.run(command, capture_output=True, text=True,
                            env={**os.environ, "MBQ_BACKEND": "cuda", "PYTHONPATH": paths})
    errors = result.stderr[result.stderr.index("error: "):]
    assert result.returncode == 2 and "backend 'cuda' was asked for, but" in errors and len(errors.splitlines()) == 1
