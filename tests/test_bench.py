"""The benchmarks run, check results before they time, and the sweeps of codes find nothing - in small."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from manifest import MANIFEST

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_codes_agree(backend):
    from check_codes import sweep

    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("Triton takes CUDA tensors here: bench/check_codes.py --device cuda")
    values = 3e4 if backend == "triton" else 3e5
    found = sweep(backend, values)
    assert found.compared >= values and found.mismatches == 0, found.first


def test_sweep_finds_a_planted_fault(monkeypatch):
    """Half-up rounding, and a multiplication by 1/scale, both differ from the contract at single values."""
    from check_codes import sweep

    from mbq_kernels.reference import quant_math

    monkeypatch.setattr(quant_math, "encode", lambda v, lo, hi: torch.clamp(torch.floor(v + 0.5), lo, hi))
    assert sweep("reference", 1e5).mismatches > 0
    monkeypatch.undo()
    monkeypatch.setattr(quant_math, "scaled", lambda x, scale, offset: (x - offset) * (1 / scale))
    assert sweep("reference", 1e5).mismatches > 0


def test_sweep_finds_a_sum_that_lacks_terms(monkeypatch):
    from check_codes import sweep

    from mbq_kernels.reference import double_round

    whole = double_round.channel_sum
    monkeypatch.setattr(double_round, "channel_sum", lambda terms, *given: whole(terms[..., ::2], *given))
    found = sweep("cpu", 1e5, ops=["double_round"])
    assert found.mismatches > 0 and all(" sum " in line for line in found.first), found.first


def test_quotients_by_the_reciprocal_are_exact(tmp_path):
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler")
    subprocess.run([compiler, "-O3", "-march=native", "-std=c++20", "-ffp-contract=off",
                    f"-I{BENCH.parent / 'csrc'}", BENCH / "check_reciprocal.cpp", "-o", tmp_path / "check"], check=True)
    done = subprocess.run([tmp_path / "check", "2e7"], capture_output=True, text=True)
    assert done.returncode == 0 and "s of 2^-1" in done.stdout, done.stdout


@pytest.mark.parametrize("options, status, message", [
    (["--values", "0", "--only", "reference"], 1, "FAILED"),
    (["--values", "1e4", "--only", "reference", "--ops", "to_planes"], 0, "every code is the same"),
    (["--only", "referense"], 2, "invalid choice: 'referense'"),
    (["--only", "cuda"], 2, "on cpu there are triton, reference, cpu"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_check_codes_fails_unless_it_compared(options, status, message):
    done = subprocess.run([sys.executable, BENCH / "check_codes.py", *options], capture_output=True, text=True)
    assert done.returncode == status and message in done.stdout + done.stderr


def test_results_name_no_place_outside_the_repository(monkeypatch):
    import machine

    monkeypatch.chdir(BENCH)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest", str(BENCH), "../../up/x", "--mbq-json=/tmp/a/b.json",
                                      "-c/etc/p.ini", "-k", "1Mi or multi"])
    assert machine._command() == "pytest bench x --mbq-json=b.json -cp.ini -k 1Mi or multi"


def test_benchmarks_and_report_in_small(tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", BENCH, "-q", "-p", "no:cacheprovider", "--mbq-small",
               "--mbq-json", results, "-k", "(test_fake_quantize and 1Mi) or (multi and 512x512x3x3) or "
               "(affine and 64Mi) or (fake_quantize_foreach and resnet20-float32-forward)"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCH.parent,
                          env={**os.environ, "TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stdout[-3000:]
    rows = json.loads(results.read_text())["rows"]
    ours = [row for row in rows if row["candidate"] == "mbq cpu"]
    assert len(ours) == 7 and all(row["ms_p50"] > 0 for row in ours)
    compiled = [row for row in rows if row["candidate"].startswith("torch.compile") and row.get("ms_p50")]
    assert compiled, "every table has a compiled column"
    done = subprocess.run([sys.executable, BENCH / "report.py", results, "--out", tmp_path], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert "mbq cpu" in (tmp_path / "report.md").read_text() and (tmp_path / "roofline.png").stat().st_size > 1000


def test_predictions_are_of_the_bytes_that_the_cases_count():
    import predicted

    counted = {case.op for case in predicted.cases().values() if predicted.paths_of(case)}
    assert counted == {op.name for op in MANIFEST.values() if op.cuda}
    for case in predicted.cases().values():
        moved = sum(predicted.counts()["paths"][name]["bytes"] for name in predicted.paths_of(case))
        assert moved in (0, pytest.approx(case.bytes / case.numel)), case.name


def test_the_slower_of_memory_and_instructions_is_predicted(monkeypatch):
    import predicted

    case = predicted.cases()["fake_quantize-tensor-64Mi-float32-forward+backward"]
    paths = {f"fake_quantize_{way} float32": {"bytes": moved, "instructions": instructions}
             for way, moved, instructions in (("forward", 8, 20), ("backward", 12, 400))}
    monkeypatch.setattr(predicted, "counts", lambda: {"paths": paths})
    found = predicted.predict(case, predicted.Gpu("", bandwidth=2e12, slots=1e13))
    assert found.seconds == pytest.approx(4.7e-6 + 2**26 * (8 / 2e12 + 400 / 1e13)) and found.limit == "instructions"
    assert found.share == pytest.approx(20 / found.seconds / (8 / (4.7e-6 + 2**26 * 8 / 2e12)))


@pytest.mark.parametrize("device, results", [("cuda", "h*.json"), ("cpu", "epyc-2-cores.json")])
def test_the_tables_of_benchmarks_are_what_the_report_writes(device, results):
    import report

    pages = [path for path in (BENCH.parent / "README.md", *BENCH.parent.glob("docs/*.md"))
             if report.MARKS[device] in path.read_text()]
    assert pages, "no page has the marks of the table"
    measured = [json.loads(path.read_text()) for path in sorted((BENCH / "results").glob(results))]
    table = {"cuda": report.gpu_table, "cpu": report.cpu_table}[device](measured)
    for page in pages:
        assert page.read_text() == report.replaced(page.read_text(), table, device), (
            f"python bench/report.py bench/results/{results} --into {page.name}")
