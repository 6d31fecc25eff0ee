"""What nvcc makes of csrc/cuda, for tests that read it: never built by an install, which may be for other GPUs."""

import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cmake_build

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("80", "90")


@functools.cache
def objects() -> tuple[Path, ...]:
    """Return the object files of csrc/cuda for ARCHITECTURES, compiled where sources or the environment are new.

    Skips the test where there is no nvcc. All that changes takes nvcc some 10 minutes of one processor.
    """
    path = os.pathsep.join([f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ.get("PATH", os.defpath)])
    if shutil.which("nvcc", path=path) is None:
        pytest.skip("no nvcc")
    folder = ROOT / "build" / "gates"
    options = {"MBQ_CUDA": "on", "MBQ_CUDA_ARCHS": ";".join(ARCHITECTURES)}
    cmake_build.build(ROOT, folder, options, packages=["torch"], target="cuda_kernels")
    return tuple(map(Path, (folder / "cuda_objects.txt").read_text().splitlines()))


@functools.cache
def dump(kind: str) -> str:
    """Return what cuobjdump, which comes with Triton, prints of all objects."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

    def one(path):
        return subprocess.run([tool, kind, path], capture_output=True, text=True, check=True).stdout
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "".join(pool.map(one, objects()))
