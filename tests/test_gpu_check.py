"""gpu_check.sh without a GPU: its stages name what there is, and one that is killed loses nothing before it."""

import importlib.util
import json
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path

import gpu_check
import gpu_stages
import pytest
import target_summary
from gpu_stages import Place, Stage
from test_manifest import bench_cases

ROOT = Path(__file__).resolve().parent.parent


def test_dry_run(tmp_path):
    done = subprocess.run([ROOT / "bench/gpu_check.sh", "a", "--dry", "--out", tmp_path, "--stages", "library", "ours"],
                          capture_output=True, text=True, env=Place(tmp_path, tmp_path).environment()
                          | {"PYTHON": sys.executable})
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()  # its own, so that nothing stands where measurements do
    assert folder.name == "dry" and {path.name for path in folder.iterdir()} <= gpu_stages.files("a")
    results = json.loads((folder / "results.json").read_text())
    assert results["small"] and {row["case"] for row in results["rows"]} == {gpu_stages.DRY_CASE}
    summary = (folder / "summary.txt").read_text()
    assert summary.startswith(gpu_check.DRY) and "library          NOT RUN, no GPU here" in summary
    assert done.stdout.count("  ok  ") == 1, summary


@pytest.mark.parametrize("call", sorted(gpu_check.LIMITS))
def test_stages_of_a_call(call):
    stages = gpu_stages.stages(call, Place(Path("out"), Path("work"), ops=("el2n",)))
    assert len({stage.name for stage in stages}) == len(stages)
    assert 5 < len(gpu_stages.files(call)) <= 8, "more files do not come back"
    words = [word for stage in stages for word in stage.command if word.startswith(("bench/", "tests/"))]
    assert len(words) > 5 and all((ROOT / word).exists() for word in words), words


@pytest.mark.parametrize("words, message", [(["--ops", "el3n"], "invalid choice: 'el3n'"),
                                            (["--dry", "--stages", "nothing"], "nothing is none of environment, ")])
def test_unknown_names_are_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "b", "--out", str(tmp_path), *words])
    with pytest.raises(SystemExit) as refused:
        gpu_check.main()
    assert message in f"{refused.value} {capsys.readouterr().err}"


def test_selected_cases_exist():
    names = [case.name for case in bench_cases()]
    assert len(names) == len(set(names)), "the rows of a case take the place of its earlier rows, by its name"
    for cases in (gpu_stages.NEVER_TIMED, gpu_stages.BOTH_CACHES, gpu_stages.WITH_RIVALS, gpu_stages.DRY_CASE):
        for glob in cases.split():
            assert any(fnmatchcase(name, glob) for name in names), f"no case is {glob}"
    twice = [name for name in names if all(any(fnmatchcase(name, glob) for glob in cases.split())
                                           for cases in (gpu_stages.BOTH_CACHES, gpu_stages.WITH_RIVALS))]
    assert not twice, "measured again with rivals, they would lose their times with a dirty cache"


def test_tests_of_every_op_run_on_the_gpu():
    every = gpu_stages.test_files(())
    assert {"tests/test_fake_quantize.py", "tests/test_raw_operators.py"} < set(every)
    assert not {"tests/test_limits.py", "tests/test_gpu_check.py"} & set(every)
    assert gpu_stages.test_files(("el2n", "double_round")) == ["tests/test_double_round.py", "tests/test_el2n.py"]


@pytest.fixture
def call(tmp_path):
    return gpu_check.Call("b", Place(tmp_path, tmp_path))


def summary_of(call):
    return (call.place.out / "summary.txt").read_text()


def runs(pid: str) -> bool:
    """Return whether a process is there and not dead already."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are not files here")
@pytest.mark.parametrize("trap", ["trap '' INT; (", "(trap '' INT; "], ids=["stage ignores INT", "child ignores INT"])
def test_a_stage_that_takes_too_long_keeps_what_it_wrote(call, monkeypatch, tmp_path, trap):
    monkeypatch.setattr(gpu_check, "SHORTEST", 1)
    monkeypatch.setattr(gpu_check, "GRACE", 0.3)
    begin = time.monotonic()
    call.run(Stage("slow", 1, "a.log", ("bash", "-c", f"{trap} sleep 30) & echo begun $!; sleep 30")))
    call.run(Stage("next", 9, "a.log", ("echo", "still here")))
    assert time.monotonic() - begin < 20 and call.failed
    assert "OUT OF TIME (1 s)" in summary_of(call) and "\nnext             ok" in summary_of(call)
    log = (tmp_path / "a.log").read_text()
    assert log.endswith("still here\n")
    child = log.partition("begun ")[2].split()[0]
    while runs(child):  # a signal takes its time
        assert time.monotonic() - begin < 20, "a child of the stage lives on"


def test_stages_end_with_the_call_and_the_last_ones_have_time_kept(call):
    call.limit = gpu_check.RESERVE + gpu_check.SHORTEST - 1
    call.run(Stage("more", 60, "a.log", ("echo", "no")))
    call.run(Stage("sums", 60, "a.log", ("echo", "yes"), sums_up=True))
    call.run(Stage("tool", 60, "a.log", ("no-such-tool",), tool="no-such-tool", sums_up=True))
    lines = summary_of(call).splitlines()
    assert ["no time left" in lines[0], " ok " in lines[1], "no no-such-tool here" in lines[2]] == [True] * 3
    assert call.failed


def result_of(case: str, met, ms: float) -> dict:
    row = {"case": case, "candidate": "mbq cuda", "timer": "CUDA events", "ms_p50": ms}
    entry = {"case": case, "rivals": ["copy"], "at_least": 0.9, "ratio": met and 0.95, "met": met}
    return {"machine": {"device": "cuda"}, "small": False, "rows": [row], "targets": [entry]}


def test_targets_are_held_missed_or_not_reached():
    result = result_of("held", True, 1.0)
    result["targets"] += [*result_of("missed", False, 1.0)["targets"], *result_of("open", None, 1.0)["targets"]]
    lines = target_summary.verdict_lines(result)
    assert [next(line.split()[0] for line in lines if f" {name}:" in line) for name in ("held", "missed", "open")] == [
        "held", "MISSED", "not"]
    cuda = [target for target in target_summary.targets.TARGETS if target.device == "cuda"]
    assert sum(line.startswith("not reached") for line in lines) == len(cuda) > 10


def test_summary_without_any_result(tmp_path):
    with pytest.raises(SystemExit, match="^no case was measured: there is no "):
        target_summary.main([str(tmp_path / "results.json")])


def test_spread_of_two_runs(tmp_path, capsys):
    for name, ms in (("results", 1.0), ("again", 1.25)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result_of("a", True, ms)))
    target_summary.main([str(tmp_path / "results.json"), str(tmp_path / "again.json")])
    assert "a: measured 0.95 x" in (said := capsys.readouterr().out) and "\nspread  25.0%  a, mbq cuda" in said
    assert target_summary.spread_lines(result_of("a", True, 1.0), result_of("b", True, 1.0)) == [
        "spread: nothing was measured twice"]


def test_a_case_takes_the_place_of_its_earlier_measurement(tmp_path):
    spec = importlib.util.spec_from_file_location("bench_conftest", ROOT / "bench/conftest.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    results, path = {"rows": [], "targets": []}, str(tmp_path / "results.json")
    for case, ms in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        one = result_of(case, True, ms)
        bench._keep(results, one["rows"], one["targets"], path)
    kept = json.loads(Path(path).read_text())
    assert [(row["case"], row["ms_p50"]) for row in kept["rows"]] == [("b", 2.0), ("a", 3.0)]
    assert [entry["case"] for entry in kept["targets"]] == ["b", "a"]
