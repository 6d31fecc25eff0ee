"""What a number was measured on: device, instruction set, clocks, versions, commit, command."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from mbq_kernels._library import build

PACKAGES = ("torch", "triton", "torchao", "brevitas", "flag_gems", "nncf", "opacus", "backpack-for-pytorch",
            "numpy", "pytest-benchmark")
ISA_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_bf16")
GPU_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")


def describe(device: str) -> dict:
    """Facts that a reader needs to repeat a measurement on `device` ("cpu" or "cuda")."""
    facts = {"device": device, "cpu": _cpu_name(), "cpu_flags": _cpu_flags(), "threads": torch.get_num_threads(),
             "instruction_set": (build() or {}).get("instruction_set"), "python": platform.python_version(),
             "versions": {name: _version(name) for name in PACKAGES}, "cuda": torch.version.cuda,
             "commit": _commit(), "command": _command()}
    return facts | ({"gpu": _gpu()} if device == "cuda" else {})


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.machine()


def _cpu_flags() -> list[str]:
    return [flag for flag in ISA_FLAGS if flag in _cpuinfo("flags").split()]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _commit() -> str:
    """The commit measured; "-dirty" when tracked files differ from it. MBQ_COMMIT says it where there is no git.

    An installed distribution, which may lie in somebody else's repository, has a version and no commit.
    """
    ours = _run("git", "ls-files", Path(__file__).name)
    described = _run("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") if ours else ""
    return os.environ.get("MBQ_COMMIT") or described or f"version {_version('mbq-kernels') or 'unknown'}"


def _command() -> str:
    """The command line: a result says how to repeat it, not where it was run."""
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    return " ".join("=".join(_without_place(part) for part in word.split("=")) for word in words)


def _without_place(word: str) -> str:
    """A path inside the repository relative to it, any other by its last name; what is no path as it is."""
    option, path = re.fullmatch(r"(-\w)?(.*)", word, re.DOTALL).groups(default="")
    if "/" not in path and path != "..":
        return word
    inside = os.path.relpath(path, Path(__file__).parents[1])
    return option + (os.path.basename(os.path.abspath(path)) if inside.startswith("..") else inside)


def _gpu() -> dict:
    answer = _run("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader")
    parts = [part.strip() for part in answer.splitlines()[0].split(",")] if answer else []
    facts = dict(zip(GPU_FIELDS, parts, strict=True)) if parts else {}
    properties = torch.cuda.get_device_properties(0)
    return facts | {"name": properties.name, "sms": properties.multi_processor_count,
                    "capability": f"{properties.major}.{properties.minor}", "l2_bytes": properties.L2_cache_size}
