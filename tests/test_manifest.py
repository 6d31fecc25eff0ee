"""What an op needs beside its own files is in the manifest once, and what is forgotten fails here by name."""

import ast
import functools
import importlib
import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from manifest import ENTRIES, MANIFEST

import mbq_kernels
from mbq_kernels._library import _raw_names, ops

ROOT = Path(__file__).resolve().parent.parent
NO_OPS = {"BackendError", "backends", "recomputation", "use_backend"}  # public names of mbq_kernels that are no ops
every_op = pytest.mark.parametrize("op", [op for op in ops() if op in MANIFEST])


def functions(path, pattern=r"[a-z]\w*"):
    """Names of the functions that a Python file defines at its top."""
    return [node.name for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and re.fullmatch(pattern, node.name)]


def test_every_op_is_imported_and_has_one_entry():
    files = {path.stem for path in (ROOT / "mbq_kernels/ops").glob("[a-z]*.py")}
    assert files == set(ops()), f"mbq_kernels/__init__.py imports no {files - set(ops())} from ops/"
    assert set(ops()) <= MANIFEST.keys(), f"tests/manifest has no entry for {set(ops()) - MANIFEST.keys()}"
    assert sorted(entry.name for entry in ENTRIES) == sorted(ops()), "an entry twice, or one of no op"


@every_op
def test_entry_has_every_field(op):
    entry = MANIFEST[op]
    lacks = [field for field in ("call", "data", "raw", "malformed", "aot", "sanitize") if not getattr(entry, field)]
    lacks += [field for field in ("on_host", "paths") if entry.cuda and not getattr(entry, field)]
    assert not lacks, f"{op}'s entry in tests/manifest lacks {', '.join(lacks)}"
    assert entry.raw.keys() == set(_raw_names[op]), f"{op}'s entry: raw must have {', '.join(_raw_names[op])}"
    public = functions(ROOT / f"mbq_kernels/ops/{op}.py")
    assert {op, *entry.also} == set(public), f"{op}'s entry: name and also must be {', '.join(public)}"


@pytest.mark.parametrize("op", ops())
def test_public_functions_are_exported(op):
    public = functions(ROOT / f"mbq_kernels/ops/{op}.py")
    lacks = [name for name in public if name not in mbq_kernels.__all__ or not hasattr(mbq_kernels, name)]
    assert not lacks, f"mbq_kernels/__init__.py: import {', '.join(lacks)}, and name them in __all__"


def test_nothing_else_is_exported():
    public = {name for entry in ENTRIES for name in (entry.name, *entry.also)}
    assert set(mbq_kernels.__all__) == public | NO_OPS and len(mbq_kernels.__all__) == len(public | NO_OPS)


@every_op
def test_op_has_its_files_and_its_row(op):
    rooms = ["mbq_kernels/ops/{}.py", "mbq_kernels/reference/{}.py", "mbq_kernels/triton/{}.py", "tests/test_{}.py"]
    lacks = [room.format(op) for room in rooms if not (ROOT / room.format(op)).is_file()]
    shared = list((ROOT / "csrc").glob(f"ops/{op}.*"))
    lacks += [] if shared or (ROOT / f"csrc/cpu/{op}.cpp").is_file() else [f"csrc/cpu/{op}.cpp"]
    lacks += [] if re.search(rf"^\| `{op}` \|", (ROOT / "README.md").read_text(), re.M) else ["a row in the README"]
    assert not lacks, f"{op} lacks {', '.join(lacks)}"
    cuda = bool(shared) or (ROOT / f"csrc/cuda/{op}.cu").is_file()
    assert cuda == MANIFEST[op].cuda, f"{op}: a file csrc/cuda/{op}.cu, or cuda=False in its entry: one of the two"


@every_op
def test_cuda_loop_runs_on_the_host(op):
    """By the test that the entry names; "no: " and a reason where none does."""
    where = MANIFEST[op].on_host
    if not where or where.startswith("no: "):
        return
    module, name = where.split(".")
    assert name in functions(ROOT / f"tests/{module}.py"), f"{op}'s entry: on_host names no test, got {where}"


@functools.cache
def compiled():
    """Names of the Triton kernels that are compiled ahead of time, and of the arithmetic in them."""
    pytest.importorskip("triton")
    variants = [variant for entry in ENTRIES for variant in entry.variants()]
    inside = [variant.constants.get(name) for variant in variants for name in ("VALUE", "TERMS")]
    return {f.__name__ for f in (*(variant.kernel for variant in variants), *inside) if f is not None}


@every_op
def test_triton_kernels_are_compiled_ahead_of_time(op):
    pytest.importorskip("triton")
    aot = MANIFEST[op].aot
    if isinstance(aot, str):
        assert callable(MANIFEST[aot].aot), f"{op}'s entry: aot must name an op with kernels of its own, got {aot}"
    else:
        assert MANIFEST[op].variants(), f"{op}'s entry: aot gives no variants"


@pytest.mark.parametrize("path", sorted((ROOT / "mbq_kernels/triton").glob("*.py")), ids=lambda path: path.stem)
def test_every_kernel_is_compiled_ahead_of_time(path):
    pattern = r"(?!.*gradient_)\w+_(value|terms)" if path.stem == "quant_math" else r"\w+_kernel"
    lacks = set(functions(path, pattern)) - compiled()
    assert not lacks, f"tests/manifest: no op's aot compiles {', '.join(sorted(lacks))} of {path.name}"


@every_op
def test_sanitizer_calls_run(op):
    """Some of what bench/sanitize_ops.py runs on a GPU alone."""
    MANIFEST[op].sanitize("cpu", some=True)


@every_op
def test_op_is_compared_between_backends(op):
    from check_codes import SWEEPS

    assert op in SWEEPS, f"bench/code_*.py: no SWEEPS of {op}"


@functools.cache
def bench_cases():
    sys.path.insert(0, str(ROOT / "bench"))
    files = [path.stem for path in sorted((ROOT / "bench").glob("bench_*.py")) if "\nCASES = " in path.read_text()]
    return [case for name in files for case in importlib.import_module(name).CASES]


@every_op
def test_op_has_a_bench_case_and_a_target(op):
    cases = [case.name for case in bench_cases() if case.op == op]
    assert cases, f"bench/bench_*.py: no CASES of {op}"
    patterns = [target.case for target in importlib.import_module("targets").TARGETS]
    assert any(fnmatchcase(case, pattern) for case in cases for pattern in patterns), (
        f"bench/targets.py: no target for {', '.join(cases)}")
