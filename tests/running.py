"""Run code of a test in another process, with other threads, or on the host where it is CUDA's."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mbq_kernels

ROOT = Path(__file__).resolve().parent.parent


def run_python(code, **environment):
    """Return the status, stdout and stderr of a program without this process' settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MBQ_") and k != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    return done.returncode, done.stdout, done.stderr


def lines_by_instruction_set(op, code):
    """Return the lines that a program prints under each instruction set; a test of `op` in C++ is skipped without."""
    if mbq_kernels.backends(op)[0] != "cpu":
        pytest.skip("the C++ kernels are not built")
    results = []
    for isa in ("v4", "v3", "baseline"):
        status, out, errors = run_python(code, MBQ_CPU_ISA=isa)
        assert status == 0, errors
        results.append(out.splitlines())
    return results


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def host_library(source, tmp_path_factory):
    """Compile tests/<source>.cpp, which includes CUDA's loops, for the host; undefined behaviour ends it."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("host") / f"{source}.so"
    subprocess.run([compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-fsanitize=undefined",
                    "-fno-sanitize-recover", f"-I{ROOT / 'csrc'}", "-isystem", Path(torch.__file__).parent / "include",
                    ROOT / f"tests/{source}.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))
