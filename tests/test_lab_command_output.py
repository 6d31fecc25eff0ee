"""What the commands print: tables whose numbers are whole, JSON, lines where there is no terminal, and help."""

import json
from dataclasses import fields
from io import StringIO

import pytest
from cli import TINY, mbq
from networks import interruptible, one_thread  # noqa: F401
from rich.console import Console
from rich.table import Table

from mbq_lab import Options
from mbq_lab.command.output import plain, print_table
from mbq_lab.command.progress import ProgressBar, ProgressLines, clock
from mbq_lab.runs.names import network_name, range_name

FEW = ["--train-limit", "128", "--test-limit", "20"]
NUMBERS = ["1.56e-04", "2,304", "9.99e+10"]


def printed(table, **console):
    file = StringIO()
    print_table(table, Console(file=file, **console))
    return file.getvalue()


def wide_table(columns=9):
    table = Table("layer", *(f"at {bits} bits" for bits in range(columns)), title="Wide", caption="the end")
    for row in range(3):
        table.add_row(f"stages.{row}.blocks.1.attention.projection.weight", *(NUMBERS * columns)[:columns])
    return table


def test_a_table_in_a_pipe_is_as_wide_as_its_content():
    text = printed(wide_table())
    assert "…" not in text and text.count("stages.1.blocks.1.attention.projection.weight") == 1
    assert all(text.count(number) == 9 for number in NUMBERS)


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_table_in_a_terminal_is_cut_into_parts_that_fit(width):
    text = printed(wide_table(), width=width, force_terminal=True, color_system=None)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert all(text.count(number) == 9 for number in NUMBERS)
    assert text.count("at 8 bits") == 1 and text.count("the end") == 1
    assert "stages" in text and text.count("layer") > 1


def test_a_table_that_fits_is_left_alone():
    text = printed(wide_table(2), width=80, force_terminal=True, color_system=None)
    assert text.count("layer") == 1 and "stages.1.blocks.1.attention.projection.weight" in text.replace("\n", "")


def test_bit_widths_in_words():
    assert [network_name(bits) for bits in (32, 8, 1)] == ["float path", "8 bits", "1 bit"]
    assert range_name({"a": 6, "b": 2}) == "2 to 6 bits, by layer"
    assert range_name({"a": 1, "b": 1}) == "1 bit in every layer"


def test_a_store_of_one_bit_width_has_no_column_of_errors(finished, tmp_path):
    assert mbq("export", finished[0], "--store", tmp_path / "m").exit_code == 0
    output = mbq("inspect", tmp_path / "m").output
    assert "bits" in output and "0.0e" not in output


def test_plain_values_are_json():
    assert plain({8: (1, float("nan")), "a": [float("inf"), None]}) == {"8": [1, None], "a": [None, None]}


def test_json_alone_on_stdout(finished, tmp_path):
    run = finished[0]
    store, low = tmp_path / "m.safetensors", tmp_path / "low.safetensors"
    expected = {
        ("eval", run): {"accuracy", "float_accuracy", "finished", "untrained", "layer_bits"},
        ("export", run, "--store", store): {"written"},
        ("switch", store, "--bits", "8", "-o", low): {"written"},
        ("inspect", low): {"layers", "bytes_at", "file_bytes"},
        ("score", run, "--score", "el2n", "--bits", "8", "--out", tmp_path): {"score", "bits", "hardest", "easiest"},
        ("train", "--dry-run", "--out", tmp_path / "new"): {"options", "modules", "memory", "steps"},
        ("train", *TINY, *FEW, "--out", tmp_path / "n"): {"accuracy", "step_ms", "folder"},
        ("info",): {"mbq_kernels", "backends"}}
    for arguments, names in expected.items():
        result = mbq(*arguments, "--json")
        assert result.exit_code == 0, result.output
        assert names <= json.loads(result.stdout).keys(), arguments


def test_the_next_command_after_training_works(finished, tmp_path):
    output = finished[1].stdout
    assert output.splitlines()[-1] == f"next: mbq eval {finished[0]}, mbq export {finished[0]} --store FILE"
    result = mbq("export", finished[0], "--store", tmp_path / "m.safetensors")
    assert result.exit_code == 0 and "It holds 8 bits alone" in result.output
    assert f"for 4, 2: mbq export {finished[0]} --store FILE --bits N" in result.output
    assert result.output.splitlines()[-1] == f"next: mbq inspect {tmp_path / 'm.safetensors'}"
    assert mbq("inspect", tmp_path / "m.safetensors").exit_code == 0
    assert mbq("export", finished[0], "--store", tmp_path / "m2.safetensors", "--bits", "2").exit_code == 0


def test_a_line_for_every_epoch_where_stderr_is_no_terminal(finished):
    lines = finished[1].stderr.splitlines()
    assert len(lines) == 3 and lines[0].startswith("8 layers quantized")
    for line, words in zip(lines[1:], (("float 1/1", "loss "), ("quantized 1/1", "8 bits ", "4 bits ", "2 bits ")),
                           strict=True):
        assert all(word in line for word in (*words, "accuracy ", " images/s", "0:00:00 left")), line


def test_quiet_shows_no_progress(tmp_path):
    result = mbq("train", *TINY, *FEW, "--quiet", "--out", tmp_path / "run")
    assert result.exit_code == 0 and result.stderr == "" and "ms a step" in result.stdout


def test_lines_tell_the_time_left_and_the_probes(capsys):
    lines = ProgressLines({"float": 30, "quantized": 10})
    lines.record({"phase": "quantized", "epoch": 4, "seconds": 700.0, "loss": {8: 0.5}, "images_per_second": 12.3,
                  "layer_bits": {"a": 6, "b": 2}})
    lines.record({"phase": "result"})
    for done in range(1, 4):
        lines.probe(done, 3)
    assert capsys.readouterr().err.splitlines() == [
        "quantized 4/10  2 to 6 bits, by layer  loss 0.5  12 images/s  1:10:00 left", "Hessian 1/3 probes",
        "Hessian 3/3 probes"]
    assert clock(3725.4) == "1:02:05"


@pytest.mark.parametrize("width", [80, 64, 120])
def test_the_bar_never_cuts_a_number(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    bar = ProgressBar({"float": 300, "quantized": 300})
    bar.progress.console.file = file = StringIO()
    bar.batch("quantized", 299, 50_000, 50_000)
    bar.progress.update(bar.tasks["quantized"], speed="12345 images/s")
    accuracy = {bits: 0.987 for bits in (32, 8, 6, 5, 4, 3, 2, 1)}
    bar.record({"phase": "quantized", "accuracy": accuracy, "loss": accuracy})
    bar.record({"phase": "quantized", "loss": accuracy})
    bar.record({"phase": "result", "accuracy": accuracy, "float_accuracy": 0.9})
    bar.close()
    text = file.getvalue()
    assert "…" not in text and text.count("300.0/300 epochs") == 1 and text.count("98.7") == len(accuracy)
    assert "0:00:00" in text and max(map(len, text.splitlines())) <= width


def test_help_fits_into_80_columns_and_names_every_option_in_its_panel(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = mbq("train", "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown and "<int>" not in shown
    for option in fields(Options):
        panel = shown.index(f"─ {option.metadata['group']} ─")
        assert shown.index(f"--{option.name.replace('_', '-')} ", panel)
    panels = [line.split()[1] for line in shown.splitlines() if line.startswith("╭─")]
    assert sorted(panels) == sorted(["Options", "data", "network", "quantizers", "training", "hasb", "emqnet", "msq",
                                     "run"])
    assert mbq().stdout == mbq("--help").stdout


def test_sentences_wrap_so_that_a_plan_is_one_table():
    table = Table("module", "parameters", "why")
    table.add_row("a.long.name.of.a.module", "2,304", "it reads the network's input, which stays in float, as ever")
    text = printed(table, width=70, force_terminal=True, color_system=None)
    assert "…" not in text and text.count("parameters") == 1 and max(map(len, text.splitlines())) <= 70
