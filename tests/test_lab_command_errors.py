"""Whatever is wrong, every command ends in one line on stderr, in the words that were typed, with exit code 2."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli import TINY, mbq
from networks import one_thread  # noqa: F401

from mbq_lab.command.group import said

ROOT = Path(__file__).resolve().parent.parent
FUNCTION = re.compile(r"error: [a-z]+(_[a-z]+)*: (?!no such)")


def wrong(*arguments):
    """Return the one line that a command ends in."""
    result = mbq(*arguments)
    lines = result.stderr.splitlines()
    assert result.exit_code == 2 and result.stdout == "" and len(lines) == 1, result.output
    assert lines[0].startswith("error: ") and not FUNCTION.match(lines[0]) and "Traceback" not in lines[0]
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize("command", ["resume", "eval", "sensitivity", "score", "transfer", "export"])
def test_a_folder_without_a_run_is_named(command, tmp_path):
    more = ["--store", tmp_path / "m.safetensors"] if command == "export" else []
    assert wrong(command, tmp_path / "nosuch", *more).startswith(f"no run in {tmp_path / 'nosuch'}")


@pytest.mark.parametrize("command, options, message", [
    ("eval", ["--bits", "4,x"], "--bits must be integers separated by commas, got '4,x'"),
    ("eval", ["--bits", "4,8"], "--bits must go from high to low"),
    ("eval", ["--device", "tpu"], "--device must be cpu, cuda, cuda:N or auto"),
    ("sensitivity", ["--bits", "9"], "--bits must be between 1 and 8"),
    ("score", ["--score", "grandd"], "--score must be one of "),
    ("score", ["--bits", "3"], "--bits must be one of "),
    ("score", ["--images", "0"], "Invalid value for '--images'"),
    ("transfer", ["--bits", "8"], "--bits must be at least two"),
    ("resume", [], "folder must hold a run that is not finished"),
    ("resume", ["--threads", "-1"], "Invalid value for '--threads'"),
    ("export", [], "--store or --onnx must name a file"),
    ("export", ["--onnx", "a.onnx"], "--onnx needs --bits, one of 8, 4, 2"),
    ("export", ["--onnx", "a", "--store", "a"], "--store and --onnx must name two files"),
    ("export", ["--store", "a", "--bits", "3"], "--bits must be one of 8, 4, 2"),
    ("export", ["--store", "a", "--layout", "plane"], "--layout must be one of codes, packed, planes, got 'plane'"),
    ("export", ["--store", "a", "--rest", "half"], "--rest must be one of "),
    ("export", ["--store", "no/folder/a"], "no folder no/folder to write a to"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_wrong_options_of_a_run_are_named_as_typed(finished, command, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert wrong(command, finished[0], *options).startswith(message)
    assert not list(tmp_path.iterdir())


def test_what_is_no_store_is_said_to_be_none(finished, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"onnx, say, or anything else")
    for command in (["inspect"], ["switch", "--bits", "4", "--out", tmp_path / "y"]):
        assert wrong(command[0], tmp_path / "x.onnx", *command[1:]).startswith(f"{tmp_path / 'x.onnx'} is not a store")
        assert "does not exist" in wrong(command[0], tmp_path / "nosuch", *command[1:])
        assert "no store" in wrong(command[0], finished[0] / "float.safetensors", *command[1:])


def test_what_does_not_exist_is_a_line():
    assert "No such command 'trian'" in wrong("trian")
    assert "Missing argument 'RUN'" in wrong("eval")


def test_a_folder_that_cannot_be_written_is_named():
    result = mbq("train", *TINY, "--train-limit", "200", "--test-limit", "20", "--out", "/proc/nosuch/run")
    assert result.exit_code == 2 and result.stderr.splitlines()[-1] == "error: /proc/nosuch: no such file or directory"


@pytest.mark.parametrize("error, expected", [
    (ValueError("options: learning_rate must be above 0, got 0"), "--learning-rate must be above 0, got 0"),
    (ValueError("options: a and learning_rate must not both be on"), "a and --learning-rate must not both be on"),
    (ValueError("train: score must be 1, got 2; set learning_rate"), "score must be 1, got 2; set --learning-rate"),
    (ValueError("read: file must be whole, got /a/learning_rate.txt"), "file must be whole, got /a/learning_rate.txt"),
    (ValueError("load_data: name must be one of digits, got 'x'"), "--data must be one of digits, got 'x'"),
    (ValueError("two\nlines"), "two lines"),
    (ValueError("load: /a/data.json is none (x: must be 1)"), "/a/data.json is none (x: must be 1)"),
    (PermissionError(13, "Permission denied", "/folder/x"), "/folder/x: permission denied"),
    (IsADirectoryError(21, "Is a directory", "/a/.m.safetensors.12ab.tmp"), "/a/m.safetensors: is a directory"),
], ids=str)
def test_messages_of_the_library_in_the_words_of_the_command(error, expected):
    assert said(error, {"learning_rate": "--learning-rate", "data": "--data"}) == expected


def test_a_bug_is_no_clean_error(monkeypatch):
    monkeypatch.setattr("mbq_kernels.info.lines", lambda: 1 / 0)
    with pytest.raises(AssertionError, match="division by zero"):
        mbq("info")


def in_a_process(code, **options):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "python")))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": paths}, **options)


def test_a_package_that_is_missing_is_named_with_what_to_install():
    code = """if True:
        import sys
        class Missing:
            def find_spec(name, path=None, target=None):
                if name.partition(".")[0] == "typer":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Missing)
        from mbq_lab.command.__main__ import main
        main()"""
    done = in_a_process(code)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: the command mbq needs the package typer: pip install 'mbq-kernels[lab]'\n"


def test_help_and_version_import_neither_torch_nor_numpy():
    code = """if True:
        import sys
        from mbq_lab.command.app import app
        from typer.testing import CliRunner
        for arguments in (["--help"], ["--version"], ["eval", "--help"], ["--show-completion"]):
            print(CliRunner().invoke(app, arguments).output)
        print("loaded:", *{"torch", "numpy", "matplotlib", "mbq_train", "mbq_kernels"} & {*sys.modules})"""
    done = in_a_process(code)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "loaded:", done.stderr
    assert "sensitivity" in done.stdout and f"torch {torch.__version__}" in done.stdout


def test_a_reader_that_closes_the_pipe_gets_no_traceback():
    code = """if True:
        from mbq_lab.command.app import app
        app(["eval", "--help"])"""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "python")))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": paths})
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
