"""Options from a file: JSON, TOML, YAML; what is on the command line wins."""

import json
import sys

import pytest
from cli import mbq

from mbq_lab import Options


def options_of(*arguments):
    result = mbq("train", *arguments, "--print-config")
    assert result.exit_code == 0, result.output
    return Options.from_json(json.loads(result.stdout))


FILES = {"json": '{"bits": [6, 2], "learning-rate": 0.01, "compile": true, "keep_float": []}',
         "toml": 'bits = [6, 2]\nlearning_rate = 0.01\ncompile = true\nkeep_float = ""\n',
         "yaml": "bits: [6, 2]\nlearning-rate: 0.01\ncompile: true\nkeep_float: []\n"}


@pytest.mark.parametrize("kind", list(FILES))
def test_options_come_from_a_file_and_the_command_line_wins(kind, tmp_path):
    if kind == "toml" and sys.version_info < (3, 11):
        pytest.skip("tomllib is there since Python 3.11")
    if kind == "yaml":
        pytest.importorskip("yaml")
    file = tmp_path / f"options.{kind}"
    file.write_text(FILES[kind])
    expected = Options(bits=(6, 2), learning_rate=0.01, compile=True, keep_float=())
    assert options_of("--config", file) == expected
    changed = options_of("--config", file, "--bits", "8,4", "--no-compile", "--epochs", "7")
    assert changed == Options(bits=(8, 4), learning_rate=0.01, epochs=7, keep_float=())


def test_what_is_printed_can_be_given_back(tmp_path):
    options = options_of("--recipe", "emqnet", "--rate", "step", "--rate-epochs", "3,9")
    (tmp_path / "c.json").write_text(json.dumps(options.to_json()))
    assert options_of("--config", tmp_path / "c.json") == options and options.weight_correction


def test_the_configuration_of_a_run_is_one(finished):
    options = options_of("--config", finished[0] / "config.json")
    assert options == Options(epochs=1, float_epochs=1, batch_size=128)


@pytest.mark.parametrize("name, text, message", [
    ("c.json", '{"epoch": 3}', "no option is called epoch in "),
    ("c.json", '{"config": "d"}', "no option is called config in "),
    ("c.json", '{"version": 0}', "version must be "),
    ("c.json", '{"epochs": {"a": 1}}', "--epochs must be one value or a list"),
    ("c.json", '{"epochs": null}', "--epochs must be one value or a list"),
    ("c.json", '{"epochs": "many"}', "Invalid value for '--epochs'"),
    ("c.json", "[1]", "must hold names and values, got list"),
    ("c.json", "{", "must be JSON"),
    ("c.ini", "epochs=3", "the file must end in .json, .toml, .yaml or .yml"),
    ("nosuch/c.json", None, "c.json: no such file or directory"),
])
def test_a_wrong_file_is_one_line(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    result = mbq("train", "--config", tmp_path / name, "--print-config")
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert "epoch" != name and ("did you mean epochs?" in result.stderr) == (text == '{"epoch": 3}')


def test_a_parser_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("epochs: 3")
    monkeypatch.setitem(sys.modules, "yaml", None)
    result = mbq("train", "--config", tmp_path / "c.yaml", "--print-config")
    assert result.exit_code == 2 and ".yaml files need the package pyyaml; JSON needs nothing" in result.stderr
