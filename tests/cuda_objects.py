"""What nvcc makes of csrc/cuda, for tests that read it: never built by an install, which may be for other GPUs.

`python tests/cuda_objects.py` compiles it before the tests, which need no more then than to read.
"""

import functools
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cmake_build

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("80", "90")


def nvcc() -> str | None:
    """Return where the CUDA compiler is, if anywhere."""
    path = os.pathsep.join([f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ.get("PATH", os.defpath)])
    return shutil.which("nvcc", path=path)


@functools.cache
def objects() -> tuple[Path, ...]:
    """Return the object files of csrc/cuda for ARCHITECTURES, compiled where sources or the environment are new.

    Compiling all takes some 6 minutes of one processor.
    """
    folder = ROOT / "build" / "gates"
    options = {"MBQ_CUDA": "on", "MBQ_CUDA_ARCHS": ";".join(ARCHITECTURES)}
    cmake_build.build(ROOT, folder, options, packages=["torch"], target="cuda_kernels")
    return tuple(map(Path, (folder / "cuda_objects.txt").read_text().splitlines()))


@functools.cache
def dump(kind: str, paths: tuple[Path, ...] | None = None) -> str:
    """Return what cuobjdump, which comes with Triton, prints of object files, of all by default."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

    def one(path):
        return subprocess.run([tool, kind, path], capture_output=True, text=True, check=True).stdout
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "".join(pool.map(one, paths or objects()))


@functools.cache
def functions(kind: str, marker: str, paths: tuple[Path, ...] | None = None) -> dict[tuple[str, str], str]:
    """Return {(architecture, function): its part of the dump}; `marker` is what stands before a function's name."""
    _, *by_arch = re.split(r"arch = sm_(\d+)", dump(kind, paths))
    found = {}
    for arch, text in zip(by_arch[::2], by_arch[1::2], strict=True):
        _, *parts = re.split(marker + r"([^\s(:]+)", text)
        found |= {(arch, name): body for name, body in zip(parts[::2], parts[1::2], strict=True)}
    return found


if __name__ == "__main__" and nvcc():
    objects()
