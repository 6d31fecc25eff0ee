"""Options of `pytest bench/`, and the one place where rows are collected and written."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "python")]

import harness  # noqa: E402
import machine  # noqa: E402
import targets  # noqa: E402
import timing  # noqa: E402
from rows import failed  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--mbq-json", metavar="FILE", help="write every row, with the machine and the command, to FILE")
    parser.addoption("--mbq-small", action="store_true", help="tiny shapes: does it run; targets are not asserted")
    parser.addoption("--mbq-full", action="store_true", help="networks of bench_networks.py at their real sizes")
    parser.addoption("--mbq-add", action="store_true", help="keep what FILE has of cases that are not measured again")
    parser.addoption("--mbq-cases", metavar="GLOBS", default="*",
                     help="names of cases to measure, in this order, such as 'switched_linear-* *-bfloat16-*'")
    parser.addoption("--mbq-rivals", choices=("all", "quick", "none"), default="all",
                     help="none: ours beside the copy alone, to tune by; quick: all that need no torch.compile; "
                          "targets against rivals that are left out are not asserted")
    parser.addoption("--mbq-backend", choices=("cpu", "cuda", "triton"), default="",
                     help="measure ours on this one alone; default: on all that can run")
    parser.addoption("--mbq-dirty", action="store_true",
                     help="on CUDA, also time with an L2 cache that was overwritten and holds dirty lines")
    parser.addoption("--mbq-malloc", choices=("keep", "system"), default="keep",
                     help="keep: freed memory is used again, as on CUDA; system: glibc's way, page faults included")
    parser.addoption("--mbq-device", choices=("cpu", "cuda"), help="default: cuda where there is one")


def pytest_configure(config):
    harness.RIVALS, harness.DIRTY = config.getoption("--mbq-rivals"), config.getoption("--mbq-dirty")
    harness.BACKEND = config.getoption("--mbq-backend")
    if config.getoption("--mbq-small"):  # whose times say nothing
        timing.MOST = timing.FEWEST


def pytest_collection_modifyitems(config, items):
    """Keep the cases of --mbq-cases, in the order of its globs. A case's name is its test's id, or the test's own."""
    globs = config.getoption("--mbq-cases").split()
    places = {item: targets.first_match(item.callspec.id if hasattr(item, "callspec") else
                                        item.name.removeprefix("test_"), globs) for item in items}
    config.hook.pytest_deselected(items=[item for item in items if places[item] is None])
    items[:] = sorted((item for item in items if places[item] is not None), key=places.get)


@pytest.fixture(scope="session")
def device(pytestconfig) -> str:
    return pytestconfig.getoption("--mbq-device") or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def results(pytestconfig, device) -> dict:
    """{"machine", "small", "rows", "targets"} of this session."""
    kept = pytestconfig.getoption("--mbq-malloc") == "keep" and timing.keep_memory()
    facts = machine.describe(device) | {"freed_memory": "kept" if kept else "returned to the system"}
    path, before = pytestconfig.getoption("--mbq-json"), {}
    if path and pytestconfig.getoption("--mbq-add") and Path(path).exists():
        before = json.loads(Path(path).read_text())
    return {"machine": facts, "small": pytestconfig.getoption("--mbq-small"), "rows": before.get("rows", []),
            "targets": before.get("targets", [])}


def _keep(results: dict, rows: list[dict], entries: list[dict], path: str | None) -> None:
    """Put a case in the place of its earlier measurement. After every case, because a run may be stopped."""
    for name, new in (("rows", rows), ("targets", entries)):
        results[name] = [old for old in results[name] if old["case"] != rows[0]["case"]] + new
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(results, indent=1) + "\n")


def _complaint(entry: dict, rows: list[dict]) -> str:
    """How far a target was missed; which rows are missing where it could not be decided."""
    if entry["met"] is not None:
        return targets.message(entry)
    measured = {row["candidate"] for row in rows if "ms_p50" in row}
    missing = [name for name in entry["rivals"] if name not in measured] or ["ours"]
    return f"{targets.message(entry)}; missing: {', '.join(missing)}"


@pytest.fixture
def record(benchmark, results, device, pytestconfig):
    """Keep the rows of one case, then assert that ours ran and its targets are met. pytest-benchmark's own table times
    `step`, our call."""
    def keep(rows, step=None):
        entries = [] if results["small"] else targets.verdicts(device, rows)
        entries = [entry for entry in entries if harness.RIVALS == "all" or entry["met"] is not None]
        benchmark.extra_info.update(rows=rows, targets=entries, machine=results["machine"])
        _keep(results, rows, entries, pytestconfig.getoption("--mbq-json"))
        synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        benchmark.pedantic(lambda: (step and step(), synchronize()), rounds=3, warmup_rounds=1)
        errors = [f"{row['candidate']}: {row['error']}" for row in rows if failed(row)]
        missed = [_complaint(entry, rows) for entry in entries if not entry["met"]]
        assert not errors and not missed, "\n".join(errors + missed)
    return keep


@pytest.fixture
def run_case(record):
    """Measure one case of an elementwise op and record it."""
    return lambda case: record(*harness.measure(case))
