"""Options of `pytest bench/`, and the one place where rows are collected and written."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "python")]

import machine  # noqa: E402
import targets  # noqa: E402
import timing  # noqa: E402
from harness import measure  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--mbq-json", metavar="FILE", help="write every row, with the machine and the command, to FILE")
    parser.addoption("--mbq-small", action="store_true", help="tiny shapes: does it run; targets are not asserted")
    parser.addoption("--mbq-malloc", choices=("keep", "system"), default="keep",
                     help="keep: freed memory is used again, as on CUDA; system: glibc's way, page faults included")
    parser.addoption("--mbq-device", choices=("cpu", "cuda"), help="default: cuda where there is one")


@pytest.fixture(scope="session")
def device(pytestconfig) -> str:
    return pytestconfig.getoption("--mbq-device") or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def results(pytestconfig, device):
    """{"machine", "small", "rows", "targets"}, written when the session ends, however the tests end."""
    kept = pytestconfig.getoption("--mbq-malloc") == "keep" and timing.keep_memory()
    facts = machine.describe(device) | {"freed_memory": "kept" if kept else "returned to the system"}
    found = {"machine": facts, "small": pytestconfig.getoption("--mbq-small"),
             "rows": [], "targets": []}
    yield found
    if path := pytestconfig.getoption("--mbq-json"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(found, indent=1) + "\n")


@pytest.fixture
def run_case(benchmark, results, device):
    """Measure one case, record its rows, then assert its targets. pytest-benchmark's own table times our step."""
    def run(case, ours, rivals):
        rows, step = measure(case, ours, rivals)
        results["rows"] += rows
        benchmark.extra_info.update(rows=rows, machine=results["machine"])
        assert step, "; ".join(row["error"] for row in rows if row["candidate"].startswith("mbq") and "error" in row)
        synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        benchmark.pedantic(lambda: (step(), synchronize()), rounds=3, warmup_rounds=1)
        wrong = [f"{row['candidate']}: {row['error']}" for row in rows if row.get("error", "").startswith("Wrong")]
        missed = []
        if not results["small"]:
            entries = targets.verdicts(device, rows)
            results["targets"] += entries
            missed = [targets.message(entry) for entry in entries if entry["met"] is False]
        assert not missed and not [w for w in wrong if w.startswith("mbq")], "\n".join(wrong + missed)
    return run
