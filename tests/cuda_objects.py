"""What nvcc makes of csrc/cuda, for tests that read it: never built by an install, which may be for other GPUs.

`python tests/cuda_objects.py` compiles it before the tests, which need no more then than to read.
"""

import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cmake_build

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("80", "90")


def has_nvcc() -> bool:
    path = os.pathsep.join([f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ.get("PATH", os.defpath)])
    return shutil.which("nvcc", path=path) is not None


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
def dump(kind: str) -> str:
    """Return what cuobjdump, which comes with Triton, prints of all objects."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

    def one(path):
        return subprocess.run([tool, kind, path], capture_output=True, text=True, check=True).stdout
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "".join(pool.map(one, objects()))


if __name__ == "__main__" and has_nvcc():
    objects()
