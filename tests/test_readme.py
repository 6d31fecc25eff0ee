"""The lines of the README that are said to run."""

import re
import shlex
from pathlib import Path

from mbq_train.cli import app
from networks import one_thread  # noqa: F401
from typer.testing import CliRunner

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks(section):
    """(language, text) of every block of code below a heading."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


def test_from_training_to_any_bit_width(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, text in blocks("From training to an int8 store to any bit-width"):
        if language == "python":
            exec(text, names)
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            assert words[0] == "mbq"
            short = ["--epochs", "1", "--float-epochs", "1"] if words[1] == "train" else []
            done = CliRunner().invoke(app, words[1:] + short)
            assert done.exit_code == 0, f"{line}\n{done.output}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-4bit.onnx", "model-4bit.safetensors",
                                                                "model.safetensors", "runs"]
    assert names["weight"].any() and names["logits"].shape == (5, 10)
