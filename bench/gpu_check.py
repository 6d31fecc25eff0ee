"""Check and measure all that needs a GPU, in two calls: a in at most 450 s, b, after changes, in at most 215 s.

    bench/gpu_check.sh a [--out DIR]                      all ops: experiments, shares of a copy, rivals, tests
    bench/gpu_check.sh b [--out DIR] [--ops OP...]        changed ops: benches twice, codes, tests, sanitizers, ncu
    bench/gpu_check.sh a|b --dry                          the same commands without a GPU, at tiny sizes

gpu_stages.py has the stages. Each runs within its own limit and what is left of the call's, writes as it goes, and
does not stop the next one; benches FAILED may be a target that was missed. DIR gets summary.txt, in which targets are
held, missed or not reached, report.md, results.json (in call b also again.json), the stages' logs and clocks.log,
sampled all the while: at most 8 files. No setting of the GPU is changed.

The interpreter has a CUDA torch, triton, numpy, cmake, ninja, setuptools, pytest, pytest-benchmark, rich, typer,
safetensors, scikit-learn, matplotlib, pillow and pyarrow. mbq_kernels/_C.so is used where it has this GPU's kernels of
every op, and built for this GPU where not; build/stream_lab where it is there, and compiled where not. MBQ_WHEELS names
a folder of wheels to install for this run, such as those of rivals; MBQ_COMMIT the commit, where there is no .git.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpu_stages
from gpu_stages import ROOT, Place, Stage

LIMITS = {"a": 440, "b": 205}  # seconds in all
RESERVE = 20  # of them for the stages that sum up
GRACE = 5  # seconds between an interrupt, on which pytest writes its summary, and the end
SHORTEST = 5  # a stage with less time is not begun
PATIENCE = 10  # times these limits has a dry run, which may be on a busy machine
SAMPLES = "timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"
OPS = ROOT / "mbq_kernels/ops"
DRY = "DRY RUN on the CPU at tiny sizes: no number here is a measurement"


class Call:
    """One call's stages, one after the other."""

    def __init__(self, name: str, place: Place):
        self.patience = PATIENCE if place.dry else 1
        self.limit, self.place, self.start, self.failed = LIMITS[name] * self.patience, place, time.monotonic(), False

    def note(self, line: str) -> None:
        print(line, flush=True)
        with (self.place.out / "summary.txt").open("a") as summary:
            summary.write(line + "\n")

    def run(self, stage: Stage) -> None:
        """Run a stage within its limit and note how it ended."""
        begin = time.monotonic()
        left = self.limit - (begin - self.start) - (0 if stage.sums_up else RESERVE)
        seconds = min(stage.seconds * self.patience, int(left))
        if missing := self._missing(stage):
            verdict = f"NOT RUN, no {missing} here"
        elif seconds < SHORTEST:
            verdict, self.failed = "NOT RUN, no time left", True
        else:
            verdict = self._verdict(stage, seconds)
            self.failed |= verdict != "ok"
        self.note(f"{stage.name:16} {verdict:28} {time.monotonic() - begin:4.0f} s  {stage.log}")

    def _missing(self, stage: Stage) -> str | None:
        if stage.gpu and self.place.dry:
            return "GPU"
        return stage.tool if stage.tool and not shutil.which(stage.tool) else None

    def _verdict(self, stage: Stage, seconds: int) -> str:
        with (self.place.out / stage.log).open("a") as log:
            log.write(f"== {stage.name}, {time.strftime('%H:%M:%S')}\n")
            log.flush()
            process = subprocess.Popen(stage.command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                                       env=self.place.environment(), start_new_session=True)
            status = _wait(process, seconds)
        return "ok" if status == 0 else f"OUT OF TIME ({seconds} s)" if status is None else f"FAILED ({status})"


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    """Return the status, or None where the limit was reached and the process and its children were ended."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return None


@contextlib.contextmanager
def sampled_clocks(file: Path):
    """Write clocks and power to `file` twice a second, where there is nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        yield
        return
    with file.open("w") as log:
        command = ["nvidia-smi", f"--query-gpu={SAMPLES}", "--format=csv", "-lms", "500"]
        sampler = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            sampler.terminate()
            sampler.wait()


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("call", choices=sorted(LIMITS))
    parser.add_argument("--out", type=Path, help="folder of the results [default: $OUT, else build/gpu_check]")
    parser.add_argument("--ops", nargs="+", default=[], choices=sorted(path.stem for path in OPS.glob("[a-z]*.py")),
                        metavar="OP", help="call b: ops that were changed [default: all]")
    parser.add_argument("--stages", nargs="+", help="run these alone")
    parser.add_argument("--dry", action="store_true", help="without a GPU, into the folder `dry` of the results")
    arguments = parser.parse_args(words)
    out = arguments.out or Path(os.environ.get("OUT", ROOT / "build" / "gpu_check"))
    arguments.out = (out / "dry" if arguments.dry else out).resolve()
    return arguments


def chosen(names: list[str] | None, stages: list[Stage]) -> list[Stage]:
    """Return the stages of these names, all where there are none. Raises SystemExit for a name that no stage has."""
    if unknown := set(names or ()) - {stage.name for stage in stages}:
        sys.exit(f"--stages: {', '.join(sorted(unknown))} is none of {', '.join(stage.name for stage in stages)}")
    return [stage for stage in stages if not names or stage.name in names]


def main() -> int:
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in gpu_stages.files(arguments.call):
        (arguments.out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as work, sampled_clocks(arguments.out / gpu_stages.CLOCKS):
        place = Place(out=arguments.out, work=Path(work), dry=arguments.dry, ops=tuple(arguments.ops))
        call = Call(arguments.call, place)
        if arguments.dry:
            call.note(DRY)
        for stage in chosen(arguments.stages, gpu_stages.stages(arguments.call, place)):
            call.run(stage)
    return int(call.failed)


if __name__ == "__main__":
    sys.exit(main())
