"""Build with CMake and Ninja, from setup.py and from the tests that read machine code.

A build folder remembers the environment it was configured in: CMake's cache names programs and folders that may be
gone by the next build, as pip's build isolation is, or that are now others.
"""

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from setuptools.command.build import build as build_command
from setuptools.errors import ExecError

VARIABLES = ("CXX", "CXXFLAGS", "LDFLAGS", "CUDAFLAGS", "CUDAHOSTCXX", "CUDA_HOME")  # that CMake reads once
COMPILERS = ("c++", "g++", "clang++")


class FreshBuild(build_command):
    """Build into an empty build/lib, because a wheel takes all that lies there, modules of earlier builds too."""

    sub_commands = build_command.sub_commands[::-1]  # modules last: what is missing is said before their long list

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


def build(source: Path, folder: Path, options: Mapping[str, object], *, packages: Iterable[str],
          target: str = "all") -> None:
    """Configure and build `source` in `folder`, which is emptied first where another environment left it.

    Args:
        source: the folder of CMakeLists.txt.
        folder: where objects and CMake's cache lie; one process at a time works there.
        options: CMake options by name; none of an earlier build stays in force, so name all that may change.
        packages: Python packages whose headers are compiled against.
        target: what to build.

    Raises:
        ExecError: what is missing, or that CMake failed, in one sentence.
    """
    # ninja may be installed beside this Python without being on the PATH
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path}
    facts = json.dumps(_environment(source, path, packages), indent=1)
    with _alone(folder):
        stamp = folder / "environment.json"
        if not stamp.exists() or stamp.read_text() != facts:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            stamp.write_text(facts)
        named = [f"-D{name}={value}" for name, value in {"MBQ_PYTHON": sys.executable, **options}.items()]
        _run("configuring", ["cmake", "-S", source, "-B", folder, "-G", "Ninja", *named], environment)
        _run("building", ["cmake", "--build", folder, "--target", target], environment)


def _environment(source: Path, path: str, packages: Iterable[str]) -> dict[str, object]:
    """Return the facts that a build folder depends on. Raises ExecError for a tool or package that is missing."""
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool, path=path):
            raise ExecError(f"{tool} must be installed, got none on the PATH: pip install {tool}")
    compiler = os.environ.get("CXX") or next((name for name in COMPILERS if shutil.which(name, path=path)), None)
    if compiler is None:
        raise ExecError("a C++20 compiler must be installed (packages g++ or gcc-c++, or name one in CXX), got none of "
                        f"{', '.join(COMPILERS)} on the PATH")
    nvcc = shutil.which("nvcc", path=os.pathsep.join([f"{os.environ.get('CUDA_HOME', '')}/bin", path]))
    return {"source": str(source), "python": sys.executable, "machine": [platform.machine(), *platform.libc_ver()],
            "tools": [shutil.which("cmake", path=path), shutil.which("ninja", path=path)],
            "compilers": [_version(compiler.split()[0], path), nvcc and _version(nvcc, path)],
            "packages": [_package(name) for name in packages],
            "variables": {name: os.environ.get(name) for name in VARIABLES}}


def _version(program: str, path: str) -> list[str]:
    found = shutil.which(program, path=path)
    if found is None:
        raise ExecError(f"CXX must name a C++ compiler, got {program!r}, which is not on the PATH")
    return [found, subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout]


def _package(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ExecError(f"{name} must be installed to build without isolation, got none: pip install {name}")
    return [spec.origin, importlib.metadata.version(name)]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(doing: str, command: list[object], environment: dict[str, str]) -> None:
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise ExecError(f"{doing} with cmake ended with status {status}; the lines above say why")
