"""Count what an element costs in the machine code of every path of the manifest.

    python tests/machine_code.py                          writes bench/machine_code.json, after csrc/cuda has changed
    python tests/machine_code.py OBJECTS.txt OUT.json     writes OUT.json from the objects that OBJECTS.txt lists

Instructions of the fast path (sass.py) of the kernel that most threads of a call run, over the elements that a thread
works on there. Nothing is measured: a kernel may be slower than its instructions, never faster.
"""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cuda_objects
import sass
import torch
from manifest import MANIFEST

TESTS = Path(__file__).resolve().parent
COUNTS, BEFORE = TESTS.parent / "bench/machine_code.json", TESTS / "machine_code_before.json"
ARCHITECTURE = "90"  # H100 and H200
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 228 * 1024, 2048, 32  # of a multiprocessor there
RESERVED = 1024  # bytes of shared memory that a block takes beside its own
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def build_library(objects: Sequence[Path], to: Path) -> Path:
    """Link the objects with a CUDA runtime that runs nothing, where they are newer than the last library."""
    source = TESTS / "launches_on_host.cpp"
    if not to.exists() or to.stat().st_mtime < max(path.stat().st_mtime for path in (source, *objects)):
        libraries = Path(torch.__file__).parent / "lib"
        hidden = to.with_suffix(".map")  # or functions of a compiled mbq_kernels would be taken for the ones here
        hidden.write_text("{ global: take_launches; local: *; };")
        subprocess.run(["g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-o", to, source, *objects,
                        f"-Wl,--version-script={hidden}", f"-L{libraries}", f"-Wl,-rpath,{libraries}",
                        "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-ltorch_cpu", "-lc10"], check=True)
    return to


def launches(library: Path) -> dict[str, list]:
    """Return what every path launches, by launches.py."""
    folders = [TESTS.parent, TESTS.parent / "python"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, TESTS / "launches.py", library], capture_output=True, text=True,
                          env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def resident(registers: int, shared: int, threads: int) -> int:
    """Return how many blocks of so many threads a multiprocessor holds."""
    warps = REGISTERS // (-(-registers // 8) * 8 * 32) // 4 * 4  # four parts, each with warps of its own
    return min(warps * 32 // threads, SHARED // (shared + RESERVED), THREADS // threads, BLOCKS)


def facts(path, launched: list, fast: sass.FastPath, used: tuple[int, ...]) -> dict:
    """Return the counts of a path. instructions: of a call, an element; round: of the round of a loop alone."""
    _, blocks, threads, dynamic = widest(launched)
    registers, stack, shared, local = used
    moved = sass.accesses(fast.way)
    reads, writes = (16 * moved[op, 16] for op in ("LDG", "STG"))
    elements = writes / path.writes if path.writes and writes else reads / path.wide["reads"]
    share = path.numel / (blocks * threads)
    names = [i.name for i in fast.way.steps]
    held = resident(registers, shared + dynamic, threads)
    return {"instructions": round(len(names) / elements + fast.around / share, 2),
            "round": round(len(names) / elements, 2), "bytes": path.reads + path.writes, "elements": elements,
            "rounds": share / elements if fast.around else 1, "share": share,
            "registers": registers, "shared": shared + dynamic, "occupancy": held * threads / THREADS,
            "in_flight": sass.loaded_first(fast.way) * held * threads, "wide_reads": reads / elements,
            "wide_writes": writes / elements, "divisions": names.count("FCHK"), "calls": fast.way.calls,
            "local": stack + local, "launches": len(launched)}


def widest(launched: list) -> list:
    """Return the launch of most threads: it does the work, others finish it."""
    return max(launched, key=lambda launch: launch[1] * launch[2])


def count(objects: tuple[Path, ...] | None = None) -> dict:
    """Return {path: its facts} of object files, of all by default."""
    every = objects or cuda_objects.objects()
    launched = launches(build_library(every, every[0].parent / "launches.so"))
    code = cuda_objects.functions("--dump-sass", "Function : ", objects)
    used = cuda_objects.functions("--dump-resource-usage", "Function ", objects)
    fast = functools.cache(lambda kernel, *given: sass.fast_path(code[ARCHITECTURE, kernel], *given))
    found = {}
    for path in (path for op in MANIFEST.values() for path in op.paths):
        kernel = widest(launched[path.name])[0]
        usage = tuple(map(int, USAGE.search(used[ARCHITECTURE, kernel]).groups()))
        found[path.name] = facts(path, launched[path.name], fast(kernel, path.levels, path.longest), usage)
    return found


@functools.cache
def counted() -> dict:
    """Return the facts of csrc/cuda as it is."""
    return count()


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=TESTS).stdout.strip()


def write(paths: dict, to: Path) -> None:
    commit = run("git", "log", "-1", "--format=%h", "--", "../csrc")
    changed = "-dirty" if run("git", "status", "--porcelain", "--", "../csrc") else ""
    compiler = re.search(r"release [\d.]+, V[\d.]+", run(cuda_objects.nvcc(), "--version"))[0]
    head = {"commit": commit + changed, "nvcc": compiler, "architecture": ARCHITECTURE}
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in paths.items())
    to.write_text(f"{json.dumps(head)[:-1]},\n \"paths\": {{\n{rows}\n }}}}\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(count(tuple(map(Path, Path(sys.argv[1]).read_text().splitlines()))), Path(sys.argv[2]))
    else:
        write(counted(), COUNTS)
