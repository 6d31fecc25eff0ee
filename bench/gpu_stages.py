"""The stages of gpu_check.py's two calls, in order of value: what was never timed before what was timed once."""

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLOCKS = "clocks.log"
DRY_CASE, DRY_FILE = "el2n-65536x10-float32-forward", "bench/bench_el2n.py"
NEVER_TIMED = ("switched_linear-* el2n-* cross_entropy_el2n-* sample_grad_norm_* *_corrected-* correct_weight_bias-* "
               "*_foreach-* fake_quantize_multi-*-bfloat16-* double_round-*-bfloat16-* *-64Mi-relu-*")
EVERY_OP = NEVER_TIMED + " *-*"  # only ops have cases with a hyphen in their names
BOTH_CACHES = ("round_clamp-tensor-4096x4096-* extract_lsb-tensor-4096x4096-* pack_codes-unpack-4bits-64Mi")
WITH_RIVALS = ("fake_quantize_foreach-axis0-resnet20-*-forward+backward switched_linear-*-rows1-* "
               "sample_grad_norm_linear-design-* fake_quantize_multi-tensor-4096x4096-bfloat16-* "
               "fake_quantize-tensor-64Mi-bfloat16-* fake_quantize-tensor-64Mi-float32-* "
               "fake_quantize-tensor-4096x4096-float32-forward+backward "
               "fake_quantize_multi-tensor-4096x4096-float32-forward+backward "
               "fake_quantize_multi-tensor-512x512x3x3-* fake_quantize-tensor-1Mi-float32-forward+backward "
               "double_round-axis0-4096x4096-float32-forward+backward lsb_penalty-tensor-4096x4096-float32-*")
VERSIONS = """import platform, torch, triton
print(platform.python_version(), torch.__version__, torch.version.cuda, triton.__version__, torch.cuda.is_available()
      and (torch.cuda.get_device_name(), torch.cuda.get_device_capability()))"""
PROFILED = """import torch, mbq_kernels as mbq
x, scale = torch.randn(2**26, device="cuda").requires_grad_(), torch.full((1,), 0.3, device="cuda").requires_grad_()
torch.autograd.grad(mbq.fake_quantize(x, scale, bits=4), (x, scale), torch.ones_like(x))"""
COUNTERS = ("gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
            "smsp__issue_active.avg.pct_of_peak_sustained_active,launch__waves_per_multiprocessor,"
            "launch__registers_per_thread,sm__warps_active.avg.pct_of_peak_sustained_active")


@dataclass(frozen=True)
class Place:
    """Where and on what stages run: results in `out`, what goes away in `work`; ops: those changed, none: all."""
    out: Path
    work: Path
    dry: bool = False
    ops: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        site = self.work / "site"
        paths = [ROOT, ROOT / "python", ROOT / "python/mbq_store", site, os.environ.get("PYTHONPATH", "")]
        return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONUNBUFFERED": "1",
                             "MBQ_CUDA": "auto", "OUT": str(self.out), "WORK": str(self.work), "SITE": str(site)}


@dataclass(frozen=True)
class Stage:
    """A command with its limit and log. gpu: not part of a dry run; tool: a program without which it does not run;
    sums_up: may use the time that is kept for the end."""
    name: str
    seconds: int
    log: str
    command: tuple[str, ...]
    gpu: bool = False
    tool: str = ""
    sums_up: bool = False


def stages(call: str, place: Place) -> list[Stage]:
    return {"a": call_a, "b": call_b}[call](place)


def files(call: str) -> set[str]:
    """Return the names of all files that a call leaves."""
    place = Place(Path(), Path())
    more = {"again.json"} if call == "b" else set()
    return {stage.log for stage in stages(call, place)} | {CLOCKS, "summary.txt", "results.json", "report.md"} | more


def python(name: str, seconds: int, log: str, *words, **facts) -> Stage:
    return Stage(name, seconds, log, (sys.executable, *map(str, words)), **facts)


def shell(name: str, seconds: int, log: str, script: str, **facts) -> Stage:
    return Stage(name, seconds, log, ("bash", "-c", script), **facts)


def call_a(place: Place) -> list[Stage]:
    return [*_environment(), _lab(), _library(), _every_op(place, 30),
            _sums(place, 20),
            _bench(place, "ours", 110, EVERY_OP, "none"),
            _bench(place, "dirty cache", 15, BOTH_CACHES, "none", "--mbq-dirty"),
            _codes(place, 35, 1.5e7),
            _bench(place, "training step", 50, "training_step", "quick"),
            _bench(place, "rivals", 140, WITH_RIVALS, "all"),
            _tests(place, "cuda", 120), _tests(place, "triton", 120),
            *_summary(place, "results.json")]


def call_b(place: Place) -> list[Stage]:
    cases = " ".join(f"{op}-*" for op in place.ops) or EVERY_OP
    return [*_environment(), _library(),
            _bench(place, "first", 35, cases, "none"),
            _bench(place, "again", 35, cases, "none", file="again.json"),
            _codes(place, 25, 1e7), _every_op(place, 20), _sums(place, 20), _tests(place, "cuda", 50),
            _sanitizer(place, "memcheck", 35),
            _sanitizer(place, "racecheck", 35, "--repeat", "1"),  # launches of many blocks, of which the last finishes
            Stage("ncu", 20, "checks.log", ("ncu", "--clock-control", "none", "--metrics", COUNTERS, "-k", "regex:mbq",
                                            "--kernel-name-base", "demangled", sys.executable, "-c", PROFILED),
                  gpu=True, tool="ncu"),
            *_summary(place, "results.json", "again.json")]


def _environment() -> list[Stage]:
    look = shell("environment", 15, "build.log",
                 f"nvidia-smi; nvcc --version | tail -n 2; {sys.executable} -c '{VERSIONS}'")
    install = shell("wheels", 40, "build.log", f"{sys.executable} -m pip install -q --no-index --find-links "
                    '"$MBQ_WHEELS" --no-deps --no-compile --target "$SITE" "$MBQ_WHEELS"/*.whl')
    return [look, install] if os.environ.get("MBQ_WHEELS") else [look]


def _library() -> Stage:
    return shell("library", 150, "build.log", f"{sys.executable} bench/has_kernels.py || "
                 f"{sys.executable} setup.py build_ext --inplace && {sys.executable} -m mbq_kernels.info", gpu=True)


def _lab() -> Stage:
    return shell("stream lab", 70, "lab.log", "mkdir -p build && { [ -x build/stream_lab ] || nvcc -O3 -std=c++20 "
                 "-fmad=false -arch=native -o build/stream_lab bench/stream_lab.cu; } && build/stream_lab", gpu=True)


def _ops(place: Place) -> list[str]:
    """Options that name the ops."""
    ops = ["el2n"] if place.dry else place.ops
    return ["--ops", *ops] if ops else []


def _every_op(place: Place, seconds: int) -> Stage:
    return python("every op", seconds, "checks.log", "bench/sanitize_ops.py", *_ops(place), *["--dry"] * place.dry)


def _sums(place: Place, seconds: int) -> Stage:
    return python("same sums", seconds, "checks.log", "bench/sanitize_ops.py", "--repeat", *_ops(place),
                  *["--dry"] * place.dry)


def _bench(place: Place, name: str, seconds: int, cases: str, rivals: str, *more, file="results.json") -> Stage:
    if place.dry:
        cases, rivals, more = DRY_CASE, "none", ("--mbq-small", *more)
    where = DRY_FILE if place.dry else "bench"
    return python(name, seconds, "bench.log", "-m", "pytest", where, "-v", "-p", "no:cacheprovider", "--tb=line",
                  "--continue-on-collection-errors", "--ignore=bench/bench_store.py",  # stores need no GPU
                  "--mbq-device", "cpu" if place.dry else "cuda", "--mbq-json", place.out / file, "--mbq-add",
                  "--mbq-rivals", rivals, "--mbq-cases", cases, *more)


def _codes(place: Place, seconds: int, values: float) -> Stage:
    where = ("--device", "cpu", "--only", "cpu", "--values", 1e3) if place.dry else ("--device", "cuda", "--values",
                                                                                    values)
    return python("codes", seconds, "checks.log", "bench/check_codes.py", *where, *_ops(place))


def test_files(ops: tuple[str, ...]) -> list[str]:
    """Return the tests that run on every backend, of some ops or of all."""
    on_devices = re.compile(r"^def test_\w+\([^)]*\bdevice\b", re.MULTILINE)
    paths = sorted((ROOT / "tests").glob("test_*.py"))
    return [f"tests/{path.name}" for path in paths if on_devices.search(path.read_text())
            and (not ops or path.stem.removeprefix("test_") in ops)]


def _tests(place: Place, backend: str, seconds: int) -> Stage:
    workers = ["-n", max(2, (os.cpu_count() or 2) - 1), "--dist", "worksteal"]
    how = ["--collect-only"] if place.dry else workers if importlib.util.find_spec("xdist") else []
    return python(f"tests {backend}", seconds, "checks.log", "-m", "pytest",
                  *test_files(("el2n",) if place.dry else place.ops), "-v", "--tb=short", "-p", "no:cacheprovider",
                  "--maxfail=40", "--continue-on-collection-errors", "-k", f"cuda-{backend}", *how)


def _sanitizer(place: Place, tool: str, seconds: int, *more: str) -> Stage:
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable, "bench/sanitize_ops.py",
               "--backends", "cuda", *_ops(place), *more)
    return Stage(tool, seconds, "checks.log", command, gpu=True, tool="compute-sanitizer")


def _summary(place: Place, *names: str) -> list[Stage]:
    results = " ".join(f"'{place.out / name}'" for name in names)
    report = f'{sys.executable} bench/report.py {results} --out "$WORK" > "$WORK"/tables'
    return [python("targets", 10, "summary.txt", "bench/target_summary.py", *(place.out / name for name in names),
                   sums_up=True),
            shell("report", 15, "bench.log", f'{report} && cat "$WORK"/*report.md > "$OUT"/report.md', sums_up=True)]
