"""Benchmarks run by pytest and pytest-benchmark inside the command: what is measured, and what is shown meanwhile."""

import importlib
import importlib.util
import io
import os
import sys
from pathlib import Path
from unittest.mock import patch

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mbq_train._names import look_up

TRAINING = "training"  # on the command line: every op that begins with it
_NEEDED = ("pytest", "pytest_benchmark")


def bench_folder() -> Path:
    """Return the folder of the benchmarks: beside the command's package where that is installed, else in the clone."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "bench", package.parents[1] / "bench") if folder.is_dir())


def bench_module(name: str):
    """Import a module of the benchmarks, which know each other by their own names alone."""
    if str(bench_folder()) not in sys.path:
        sys.path.insert(0, str(bench_folder()))
    return importlib.import_module(name)


class Session:
    """A pytest plugin that keeps the cases of `ops`, all where there are none, and collects what is measured.

    `rows`, `targets`: of all cases that were measured, `machine` what on. `refused` {case: why}: no number, because
    ours failed or is wrong. `missing` {file: why}: benchmarks that cannot be imported. `show` is told every case.
    """

    def __init__(self, ops: list[str], show=None):
        self.ops, self.show, self.error = ops, show, None
        self.cases, self.rows, self.targets, self.refused, self.missing = [], [], [], {}, {}
        self.machine = None

    def run(self, *options: str) -> int:
        """Run pytest on the benchmarks and return its exit code."""
        absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if absent:
            raise ImportError(f"mbq bench needs the package {absent[0].replace('_', '-')}: "
                              "pip install 'mbq-kernels[bench]'")
        import pytest

        folder = str(bench_folder())
        arguments = [folder, "--rootdir", folder, "-c", f"{folder}/pytest.ini", "-p", "no:cacheprovider",
                     "-p", "pytest_benchmark.plugin", "--continue-on-collection-errors", *options]
        alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}  # other plugins are of other tests
        with patch.dict(os.environ, alone):
            code = pytest.main(arguments, plugins=[self])
        if self.error is not None:
            raise self.error
        return code

    def cases_measured(self) -> dict[str, list[dict]]:
        """Return the rows of every case."""
        return {name: [row for row in self.rows if row["case"] == name] for name in
                dict.fromkeys(row["case"] for row in self.rows)}

    def not_imported(self) -> list[str]:
        """Return a line for every benchmark that cannot be imported."""
        return [f"{name} is not measured ({why})" for name, why in self.missing.items()]

    def pytest_sessionstart(self, session):
        """Silence pytest's own report, because the command has one."""
        session.config.pluginmanager.unregister(name="terminalreporter")

    def pytest_collectreport(self, report):
        if report.failed:
            self.missing[Path(report.nodeid).stem] = str(report.longrepr).strip().splitlines()[-1].removeprefix("E   ")

    def pytest_collection_modifyitems(self, items):
        """Keep tests that record a case and are of a wanted op. An exception here would end in pytest's own words."""
        found = {item: case_of(item) for item in items if "record" in item.fixturenames}
        known = {op_of(name): op_of(name) for name in found.values()}
        try:
            wanted = [look_up("bench", known, op, argument="op") for op in self.ops]
        except ValueError as error:
            self.error, wanted = ValueError("; ".join([str(error), *self.not_imported()])), ["nothing"]
        items[:] = [item for item, name in found.items() if not wanted or op_of(name) in wanted]
        self.cases = [found[item] for item in items]
        if self.show is not None and not self.error:
            self.show.start(len(items))

    def pytest_runtest_logstart(self, nodeid):
        if self.show is not None:
            self.show.case(nodeid.rpartition("[")[2].rstrip("]"))

    def pytest_runtest_makereport(self, item, call):
        """Take what a case recorded, in place of pytest's verdict: a missed target is a number, not an error."""
        if call.when == "teardown" or (call.when == "setup" and call.excinfo is None):
            return
        recorded = item.funcargs["benchmark"].extra_info if "benchmark" in item.funcargs else {}
        rows, name = recorded.get("rows", []), case_of(item)
        failed = list(filter(bench_module("rows").failed, rows))
        raised = call.excinfo.typename if call.excinfo is not None else ""
        skipped = raised == "Skipped"
        if failed:
            self.refused[name] = failed[0]["error"]
        elif raised and not skipped and not (rows and raised == "AssertionError"):  # of rows: a target is missed
            self.refused[name] = f"{call.excinfo.typename}: {' '.join(str(call.excinfo.value).split())}"
        self.rows += rows
        self.targets += recorded.get("targets", [])
        self.machine = recorded.get("machine", self.machine)
        if self.show is not None:
            self.show.done(name, rows, self.refused.get(name), call.excinfo.value if skipped else None)


def case_of(item) -> str:
    """Return the name of the case that a test measures: its parameter's, or its own."""
    return item.callspec.id if hasattr(item, "callspec") else item.name.removeprefix("test_")


def op_of(name: str) -> str:
    """Return the word that a case is asked for by."""
    op = name.partition("-")[0]
    return TRAINING if op.startswith(TRAINING) else op


def _own_stderr():
    """Return stderr as it is now, because pytest captures all that others print to it meanwhile."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w")
    except io.UnsupportedOperation:  # a stream of a test
        return sys.stderr


class CaseLines:
    """A line for every case, on stderr."""

    def __init__(self):
        self.console, self.count, self.total = Console(file=_own_stderr()), 0, 0

    def start(self, total: int) -> None:
        self.total = total

    def case(self, name: str) -> None:
        """Tell that a case begins."""

    def done(self, name: str, rows: list[dict], refused: str | None, skipped) -> None:
        """Tell how a case ended."""
        self.count += 1
        said = f"refused: {refused}" if refused else f"skipped: {skipped}" if skipped else self._numbers(rows)
        self.say(f"{self.count}/{self.total} {name}: {said}")

    def say(self, line: str) -> None:
        print(line, file=self.console.file, flush=True)

    def close(self) -> None:
        """Leave nothing behind."""

    @staticmethod
    def _numbers(rows: list[dict]) -> str:
        return "; ".join(f"{ours} ms, " + (f"{share} of a copy, " if share else "") + f"{rival} {ratio}".rstrip()
                         for _, ours, share, rival, ratio in bench_module("report").glance(rows))


class CaseBar(CaseLines):
    """A bar over the cases, with the case that is being measured; what is refused stays above it."""

    def __init__(self):
        super().__init__()
        columns = (TextColumn("benchmarks"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
        self.progress, self.task = Progress(*columns, console=self.console, redirect_stdout=False,
                                            redirect_stderr=False, refresh_per_second=4), None

    def start(self, total):
        self.progress.start()
        self.task = self.progress.add_task("", total=total)

    def case(self, name):
        self.progress.update(self.task, description=name)

    def done(self, name, rows, refused, skipped):
        if refused:
            self.progress.console.print(f"{name}: refused: {refused}", markup=False, highlight=False)
        self.progress.advance(self.task)

    def close(self):
        if self.task is not None:
            self.progress.stop()
