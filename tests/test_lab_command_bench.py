"""mbq bench: what is measured and shown, what is refused, two runs compared, reports of committed results."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import torch
from checking import Wrong
from cli import mbq
from rows import failed

from mbq_lab.command import bench_session
from mbq_lab.command.tables import steps_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
OP = "fake_quantize_affine"  # three cases
QUICK = ("--quick", "--no-rivals", "--device", "cpu")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Leave what a run sets in the modules of the benchmarks as it was."""
    for name in ("RIVALS", "DIRTY", "BACKEND"):
        monkeypatch.setattr(harness, name, getattr(harness, name))
    monkeypatch.setattr("timing.MOST", 40)


def test_a_run_is_shown_case_by_case_and_written(tmp_path):
    out = tmp_path / "results.json"
    done = subprocess.run([sys.executable, "-m", "mbq_lab.command", "bench", OP, *QUICK, "--threads", "1",
                           "--out", out], capture_output=True, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "0"}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert [line.partition(" ")[0] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all(" ms, " in line for line in lines)
    assert f"written: {out}" in done.stdout and "fastest rival" in done.stdout and "passed" not in done.stdout
    results = json.loads(out.read_text())
    assert results["machine"]["threads"] == 1 and results["machine"]["command"].endswith("--out results.json")
    ours = [row for row in results["rows"] if row["candidate"] == "mbq cpu"]
    assert len(ours) == 3 and all(row["check"].startswith("same bits") for row in ours)


def test_cases_of_ops_are_listed():
    cases = json.loads(mbq("bench", OP, "training", "--list", "--json").stdout)["cases"]
    assert sum(case.startswith(f"{OP}-") for case in cases) == 3
    assert {case.partition("-")[0] for case in cases} == {OP, "training_step", "training_step_of"}


@pytest.mark.parametrize("arguments, message", [
    (["fake_quantise"], "got 'fake_quantise' (did you mean 'fake_quantize'?)"),
    ([OP, "--device", "gpu"], "--device must be one of auto, cpu, cuda, got 'gpu'"),
    ([OP, "--backend", "reference"], "--backend must be one of cpu, cuda, triton, got 'reference'"),
    ([OP, "--out", "no/folder/a.json"], "no folder no/folder to write a.json to"),
    (["--compare", "a.json"], "--compare must have two results files, got 1"),
    (["--compare", "--report", "a.json"], "--compare and --report must not be given together"),
    (["--compare", "a.json", "b.json"], "a.json: no such file or directory"),
    (["--report", str(ROOT / "README.md"), "--out", "x"], "must be a results file of mbq bench, got no JSON"),
    (["--report", str(RESULTS / "coreset-digits.json"), "--out", "x"], "JSON without machine and rows"),
    (["--report", "a.json"], "--report must have results files and --out a folder, got 1 files and no folder"),
], ids=lambda value: " ".join(Path(word).name for word in value) if isinstance(value, list) else None)
def test_wrong_arguments_end_in_one_line(arguments, message):
    result = mbq("bench", *arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


def test_a_wrong_result_is_refused_and_not_timed(monkeypatch):
    def wrong(case, inputs, candidate, got, want):
        raise Wrong(f"{candidate.name} is not right")

    monkeypatch.setattr(harness, "compare", wrong)
    result = mbq("bench", OP, *QUICK, "--json", "--backend", "cpu")
    facts = json.loads(result.stdout)
    assert result.exit_code == 1 and len(facts["refused"]) == 3
    assert set(facts["refused"].values()) == {"Wrong: mbq cpu is not right"}
    assert not [row for row in facts["rows"] if row["candidate"] == "mbq cpu" and "ms_p50" in row]


def test_ctrl_c_keeps_what_was_measured(monkeypatch, tmp_path):
    calls, compare = [], harness.compare

    def stopped(case, *rest):
        calls.append(case.name)
        if len(set(calls)) == 2:
            raise KeyboardInterrupt
        return compare(case, *rest)

    monkeypatch.setattr(harness, "compare", stopped)
    result = mbq("bench", OP, *QUICK, "--backend", "cpu", "--quiet", "--out", tmp_path / "a.json")
    assert result.exit_code == 130 and "stopped by Ctrl-C; 1 of 3 cases are measured" in result.stderr
    assert f"written: {tmp_path / 'a.json'}" in result.stdout
    assert {row["case"] for row in json.loads((tmp_path / "a.json").read_text())["rows"]} == {calls[0]}


def test_rivals_that_are_missing_are_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "brevitas", None)
    result = mbq("bench", OP, "--quick", "--device", "cpu", "--backend", "cpu", "--quiet")
    line = next(line for line in result.stdout.splitlines() if line.startswith("not measured: "))
    assert "Brevitas (" in line and line.endswith("pip install 'mbq-kernels[bench]'")


def test_the_extra_is_named_where_the_engine_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = mbq("bench", OP)
    assert result.exit_code == 2 and result.stderr == (
        "error: mbq bench needs the package pytest: pip install 'mbq-kernels[bench]'\n")


def changed(tmp_path, factor: float, of: str) -> Path:
    """Return a results file in which times of candidates that begin with `of` are multiplied."""
    results = json.loads((RESULTS / "epyc-2-cores.json").read_text())
    for row in results["rows"]:
        if row["candidate"].startswith(of) and "ms_p50" in row:
            row |= {name: factor * row[name] for name in ("ms_p20", "ms_p50", "ms_p80")}
    (tmp_path / "b.json").write_text(json.dumps(results))
    return tmp_path / "b.json"


@pytest.mark.parametrize("factor, of, verdict, code", [(2.0, "mbq", "slower", 1), (2.0, "", "", 0),
                                                       (0.5, "mbq", "faster", 0), (2.0, "copy", "faster", 0),
                                                       (1.05, "mbq", "", 0)])
def test_times_are_compared_by_those_of_the_copy(tmp_path, factor, of, verdict, code):
    before = RESULTS / "epyc-2-cores.json"
    result = mbq("bench", "--compare", before, changed(tmp_path, factor, of), "--fail", "--json")
    changes = [change for change in json.loads(result.stdout)["changes"] if change["base"] == "copy"]
    assert len(changes) == 162 and {change["verdict"] for change in changes} <= {verdict, ""}
    assert sum(change["verdict"] == verdict for change in changes) >= 100 and result.exit_code == code
    relative = 1 if of == "" else 1 / factor if of == "copy" else factor
    assert all(change["ratio"] == pytest.approx(relative) for change in changes)


def test_the_most_slowed_down_comes_first_and_other_machines_are_named(tmp_path):
    result = mbq("bench", "--compare", RESULTS / "epyc-2-cores.json", RESULTS / "xeon-2-cores-codes.json")
    assert result.exit_code == 0 and "the runs differ in cpu: " in result.stdout
    assert "regressions of 62 times" in result.stdout
    results = json.loads((RESULTS / "epyc-2-cores.json").read_text())
    for place, row in enumerate(row for row in results["rows"] if "ms_p50" in row):
        row |= {name: (1 + place % 7) * row[name] for name in ("ms_p20", "ms_p50", "ms_p80")}
    (tmp_path / "b.json").write_text(json.dumps(results))
    again = mbq("bench", "--compare", RESULTS / "epyc-2-cores.json", tmp_path / "b.json", "--json")
    ratios = [change["ratio"] for change in json.loads(again.stdout)["changes"]]
    assert len(set(ratios)) > 5 and ratios == sorted(ratios, reverse=True)


def test_reports_have_tables_and_pictures(tmp_path):
    counts = {"xeon-2-cores-switched-linear": 1, "h100-resnet50": 0}  # of pictures of rivals
    result = mbq("bench", "--report", *(RESULTS / f"{name}.json" for name in counts), "--out", tmp_path / "report")
    written = {path.name for path in (tmp_path / "report").iterdir()}
    for name, count in counts.items():
        pictures = {f"{name}_roofline.png", *(f"{name}_ratios{i + 1}.png" for i in range(count))}
        assert {f"{name}_report.md", *pictures} <= written, result.output
        text = (tmp_path / "report" / f"{name}_report.md").read_text()
        assert "## At a glance" in text and all(f"({picture})" in text for picture in pictures)
    assert all(path.stat().st_size > 10_000 for path in (tmp_path / "report").glob("*.png"))


def test_every_way_to_take_a_training_step_is_in_a_table():
    rows = [{"case": "c", "op": "o", "candidate": name, "timer": "wall clock", "check": "losses 1.0", "differs": "",
             "samples": 5, "ratio_to_ours": ms, **dict.fromkeys(("ms_p20", "ms_p50", "ms_p80"), ms)}
            for name, ms in (("mbq", 1.0), ("torch.ao", 3.0), ("accelerate(torch.ao)", 0.75))]
    rows.append({"case": "c", "op": "o", "candidate": "torchao", "error": "ImportError: none"})
    table = steps_table("c", rows)
    assert list(table.columns[0].cells) == ["accelerate(torch.ao)", "mbq", "torch.ao", "torchao"]
    assert list(table.columns[2].cells) == ["0.75", "1.00", "3.00", ""]


def test_families_of_pictures_are_ops_with_rivals_in_common():
    pictures = bench_session.bench_module("pictures")
    rows = [{"op": op, "candidate": rival} for op, rivals in (("a", "xy"), ("b", "z"), ("c", "yw"), ("d", "wz"))
            for rival in rivals]
    families = [{row["op"] for row in family} for family in pictures._families(rows[:5])]
    assert families == [{"b"}, {"a", "c"}]
    assert [{row["op"] for row in family} for family in pictures._families(rows)] == [{"a", "b", "c", "d"}]


def test_training_steps_begin_with_the_losses_of_ours(monkeypatch):
    networks = bench_session.bench_module("bench_networks")
    monkeypatch.setattr(harness, "RIVALS", "quick")
    monkeypatch.setattr("timing.SHARE_S", 0)
    name = "llama_block"
    size = networks.SIZES[name][0]
    inputs, target = networks.batch_of(name, size, "cpu")
    rows = networks.measure_steps("case", "training_step_of", networks.ways_of(name, size, inputs, target),
                                  networks.checked, networks.OURS, "cpu")
    found = {row["candidate"]: row for row in rows}
    assert {"mbq", "unquantized", "eager LSQ", "torch.ao"} <= {name for name, row in found.items() if "ms_p50" in row}
    assert found["eager LSQ"]["check"].startswith("losses within ")
    accelerated = {row["candidate"]: row for row in rows if row["candidate"].startswith("accelerate(")}
    assert accelerated.keys() == networks.ACCELERATED.keys() and not list(filter(failed, rows))


@pytest.mark.parametrize("losses, message", [
    ({"eager LSQ": [2.0, math.nan]}, r"the losses of the first steps are \[2.0, nan\]"),
    ({"eager LSQ": [2.0, 1.0], "mbq": [2.002, 1.0]}, r"are \[2.0, 1.0\], of mbq \[2.00"),
    ({"eager LSQ": [2.0, 2.0], "mbq": [2.0, 1.97]}, r"are \[2.0, 2.0\], of mbq \[2.0, 1.97"),
], ids=["not finite", "another network", "another gradient"])
def test_training_steps_of_other_losses_are_refused(losses, message):
    networks = bench_session.bench_module("bench_networks")
    with pytest.raises(Wrong, match=message):
        networks.checked("eager LSQ", {name: torch.tensor(values) for name, values in losses.items()})
