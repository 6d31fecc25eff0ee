"""The command that measures kernels and training steps beside everybody else's: bench."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import RUN, AsJson, Quiet
from .group import fail

if TYPE_CHECKING:
    from .bench_session import Session

DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("", "cpu", "cuda", "triton")
COMPARED, REPORTED = "two runs", "reports"  # the panels of what is done with files


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="OP", help="operations, or training; all where none is "
                                                      "named. Of --compare and --report: results files")] = None,
    listed: Annotated[bool, typer.Option("--list", help="print the cases and measure nothing")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="tiny shapes and no torch.compile: whether all runs and is "
                                        "right, no measurement")] = False,
    full: Annotated[bool, typer.Option("--full", help="training: images of 224 x 224, sequences of 2048")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="PATH", help="results file to write, after every "
                                             "case; of --report the folder")] = None,
    backend: Annotated[str, typer.Option(help="cpu, cuda or triton: ours on this one alone; empty: on all")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one")] = "auto",
    rivals: Annotated[bool, typer.Option("--rivals/--no-rivals", help="measure all, or ours beside a copy")] = True,
    threads: Annotated[int, typer.Option(min=0, rich_help_panel=RUN, help="CPU threads; 0: torch's choice")] = 0,
    compare: Annotated[bool, typer.Option("--compare", rich_help_panel=COMPARED, help="compare two results files, the "
                                          "earlier one first")] = False,
    tolerance: Annotated[float, typer.Option(min=0, rich_help_panel=COMPARED, help="a regression is slower by more "
                                             "than this share, and than noise")] = 0.1,
    failing: Annotated[bool, typer.Option("--fail", rich_help_panel=COMPARED,
                                          help="exit with code 1 where there is a regression")] = False,
    report: Annotated[bool, typer.Option("--report", rich_help_panel=REPORTED, help="write tables and pictures of "
                                         "results files to --out")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure kernels and training steps beside a copy and everybody else's, in one run.

    Results are checked first: what is wrong is refused and never timed. Ctrl-C keeps what was measured.
    """
    if compare and report:
        raise ValueError("--compare and --report must not be given together, got both")
    if compare:
        _compare(names or [], tolerance, failing, as_json)
    elif report:
        _report(names or [], out)
    else:
        _measure(names or [], _options(quick, full, out, backend, device, rivals), listed, threads,
                 None if listed else out, quiet, as_json)


def _options(quick, full, out, backend, device, rivals) -> list[str]:
    """Return the options of `pytest bench` that stand for the command's."""
    for name, value, choices in (("device", device, DEVICES), ("backend", backend, BACKENDS)):
        if value not in choices:
            raise ValueError(f"--{name} must be one of {', '.join(filter(None, choices))}, got {value!r}")
    if out is not None and not out.absolute().parent.is_dir():
        raise ValueError(f"no folder {out.parent} to write {out.name} to")
    level = "none" if not rivals else "quick" if quick else "all"
    return ["--mbq-rivals", level, *(["--mbq-small"] if quick else []), *(["--mbq-full"] if full else []),
            *(["--mbq-json", str(out.absolute())] if out else []), *(["--mbq-backend", backend] if backend else []),
            *(["--mbq-device", device] if device != "auto" else [])]


def _measure(ops, options, listed, threads, out, quiet, as_json) -> None:
    import sys

    import torch

    from .bench_session import TRAINING, CaseBar, CaseLines, Session, op_of
    from .output import show
    from .tables import bench_table, steps_table

    if threads:
        torch.set_num_threads(threads)
    shown = None if quiet or listed else CaseBar() if sys.stderr.isatty() else CaseLines()
    session = Session(ops, shown)
    try:
        code = session.run(*options, *(["--collect-only"] if listed else []))
    finally:
        if shown is not None:
            shown.close()
    if listed:
        show(as_json, {"cases": session.cases}, *session.cases)
        return
    facts = {"machine": session.machine, "rows": session.rows, "targets": session.targets,
             "refused": session.refused, "missing": session.missing}
    steps = {name: rows for name, rows in session.cases_measured().items() if op_of(name) == TRAINING}
    show(as_json, facts, *([bench_table(session.rows)] if session.rows else []),
         *(steps_table(name, rows) for name, rows in steps.items()), *_remarks(session),
         f"written: {out}" if out and session.rows else "")
    _exit(session, stopped=code == 2)


def _remarks(session: "Session") -> list[str]:
    """Return a line for what was not measured, and for targets that were missed."""
    absent = dict.fromkeys(f"{row['candidate']} ({row['error'].rpartition(': ')[2]})" for row in session.rows
                           if row.get("error", "").startswith(("ModuleNotFoundError", "ImportError")))
    decided = [entry["met"] for entry in session.targets if entry["met"] is not None]
    return [f"refused {case}: {why}" for case, why in session.refused.items()] + [
        line for line in (
            f"not measured: {', '.join(absent)}; pip install 'mbq-kernels[bench]'" if absent else "",
            *(session.not_imported() if not session.ops else ()),
            f"targets: {sum(decided)} of {len(decided)} met" if decided else "") if line]


def _exit(session: "Session", *, stopped: bool) -> None:
    """Exit with 130 after Ctrl-C, 1 where a result of ours was refused, 2 where nothing was measured."""
    measured = len({row["case"] for row in session.rows})
    if stopped:
        raise typer.Exit(fail(f"stopped by Ctrl-C; {measured} of {len(session.cases)} cases are measured", 130))
    if session.refused:
        raise typer.Exit(1)
    if not session.rows:
        raise ValueError(f"no case was measured, of {len(session.cases)}")


def _results_of(paths: list[str]) -> list[dict]:
    """Return what results files hold. Raises ValueError for one that is none."""
    import json

    results = []
    for path in paths:
        try:
            results.append(json.loads(Path(path).read_text()))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} must be a results file of mbq bench, got no JSON ({error})") from None
        if not isinstance(results[-1], dict) or not {"machine", "rows"} <= results[-1].keys():
            raise ValueError(f"{path} must be a results file of mbq bench, got JSON without machine and rows")
    return results


def _compare(paths: list[str], tolerance: float, failing: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from .bench_session import bench_module
    from .output import show
    from .tables import comparison_table

    if len(paths) != 2:
        raise ValueError(f"--compare must have two results files, got {len(paths)}")
    before, after = _results_of(paths)
    found = bench_module("compare").compare(before, after, tolerance)
    show(as_json, asdict(found), comparison_table(found, tolerance), *found.remarks,
         f"{len(found.regressions)} regressions of {len(found.changes)} times")
    if failing and found.regressions:
        raise typer.Exit(1)


def _report(paths: list[str], out: Path | None) -> None:
    from .bench_session import bench_module
    from .output import show

    if not paths or out is None:
        raise ValueError("--report must have results files and --out a folder, got "
                         f"{len(paths)} files and {'no folder' if out is None else out}")
    written = bench_module("report").write([Path(path) for path in paths], _results_of(paths), out)
    show(False, {}, *(f"written: {path}" for path in written))
