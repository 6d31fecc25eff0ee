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


def pytest_addoption(parser):
    parser.addoption("--mbq-json", metavar="FILE", help="write every row, with the machine and the command, to FILE")
    parser.addoption("--mbq-small", action="store_true", help="tiny shapes: does it run; targets are not asserted")
    parser.addoption("--mbq-rivals", choices=("all", "none"), default="all",
                     help="none: ours beside the copy alone, to tune by; targets against rivals are not asserted")
    parser.addoption("--mbq-malloc", choices=("keep", "system"), default="keep",
                     help="keep: freed memory is used again, as on CUDA; system: glibc's way, page faults included")
    parser.addoption("--mbq-device", choices=("cpu", "cuda"), help="default: cuda where there is one")


def pytest_configure(config):
    harness.RIVALS = config.getoption("--mbq-rivals") == "all"


@pytest.fixture(scope="session")
def device(pytestconfig) -> str:
    return pytestconfig.getoption("--mbq-device") or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def results(pytestconfig, device) -> dict:
    """{"machine", "small", "rows", "targets"} of this session."""
    kept = pytestconfig.getoption("--mbq-malloc") == "keep" and timing.keep_memory()
    facts = machine.describe(device) | {"freed_memory": "kept" if kept else "returned to the system"}
    return {"machine": facts, "small": pytestconfig.getoption("--mbq-small"), "rows": [], "targets": []}


def _write(results: dict, path: str | None) -> None:
    """After every case, so that a run that is stopped keeps what it measured."""
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
        entries = [entry for entry in entries if harness.RIVALS or entry["met"] is not None]
        results["rows"] += rows
        results["targets"] += entries
        benchmark.extra_info.update(rows=rows, machine=results["machine"])
        _write(results, pytestconfig.getoption("--mbq-json"))
        synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        benchmark.pedantic(lambda: (step and step(), synchronize()), rounds=3, warmup_rounds=1)
        failed = [f"{row['candidate']}: {row['error']}" for row in rows
                  if row["candidate"].startswith("mbq") and "error" in row]
        missed = [_complaint(entry, rows) for entry in entries if not entry["met"]]
        assert not failed and not missed, "\n".join(failed + missed)
    return keep


@pytest.fixture
def run_case(record):
    """Measure one case of an elementwise op and record it."""
    return lambda case: record(*harness.measure(case))
