"""Are the codes bit-identical on every backend?   python bench/check_codes.py --values 1e8 [--device cuda]

x_hat in the dtype of the arithmetic is one value per code, so equal x_hat are equal codes. On the CPU the PyTorch
reference is compared with NumPy, C++ (once per instruction set) and Triton (interpreted) with the reference. With
--device cuda the CUDA and the Triton kernels are compared with the reference on the CPU.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "python")]

import code_values as cv  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from mbq_kernels import use_backend  # noqa: E402
from mbq_kernels._library import build  # noqa: E402

BACKENDS = {"cpu": ("triton", "reference", "cpu"), "cuda": ("cuda", "triton")}  # compared on each device
INSTRUCTION_SETS = ("baseline", "v3", "v4")  # MBQ_CPU_ISA
SHOWN = 5
EVERY_SETTING = 3e6  # about how many values all settings have at least


@dataclass
class Tally:
    """What one sweep compared, and where it differed: readable lines, the first SHOWN."""
    backend: str
    compared: int = 0
    mismatches: int = 0
    first: list[str] = field(default_factory=list)
    seconds: float = 0.0


def sweep(backend: str, values: float, device: str = "cpu", seed: int = 0) -> Tally:
    """Compare codes of `backend` with the definition on at least `values` values; the same ones for the same seed.

    Covers code_values.QUANTIZERS x dtypes x bits x signed x per tensor, first and last axis x offset.
    """
    tally, start = Tally(backend), time.perf_counter()
    dtypes = cv.DTYPES if backend in ("reference", "cpu") else cv.DTYPES[:3]
    settings = list(cv.settings(dtypes))
    if values < EVERY_SETTING:  # a quick look: some of the settings, all of their ties and edges
        settings = random.Random(seed).sample(settings, max(1, round(len(settings) * values / EVERY_SETTING)))
    rounds = 3 if values > 1e7 else 1
    interpreting = backend == "triton" and device == "cpu"
    with np.errstate(all="ignore"), _large_tiles() if interpreting else contextlib.nullcontext():
        while tally.compared < values:
            for r in range(rounds):
                share = int(max(values - tally.compared, 0) / (rounds - r) / len(settings))
                for i, setting in enumerate(settings):
                    inputs = cv.Inputs(setting, share, torch.Generator().manual_seed(seed + 1000 * r + i), r + i)
                    _compare(tally, setting, inputs, backend, device)
            seed += 7919
    tally.seconds = time.perf_counter() - start
    return tally


@contextlib.contextmanager
def _large_tiles():
    """Triton programs over 64 Ki elements: the interpreter's cost is per program, the arithmetic is the same."""
    from mbq_kernels.triton import _elementwise as elementwise
    tile, elementwise.TILE = elementwise.TILE, 2**16
    try:
        yield
    finally:
        elementwise.TILE = tile


def _compare(tally: Tally, setting, inputs, backend: str, device: str) -> None:
    if backend == "reference":
        want = cv.numpy_codes(setting, inputs)
    else:
        with use_backend("reference"):
            want = _run(setting, inputs)
    with use_backend(backend):
        got = [y.cpu() for y in _run(setting, inputs.to(device))]
    for k, (y, ref) in enumerate(zip(got, want, strict=True)):
        tally.compared += y.numel()
        different = ~((y == ref) | (y.isnan() & ref.isnan()))
        if bool(different.any()):
            at = different.flatten().nonzero()[0].item()
            tally.mismatches += int(different.sum())
            if len(tally.first) < SHOWN:
                tally.first.append(f"{setting} output {k} flat index {at}: x = {inputs.x.flatten()[at].item()!r} gives "
                                   f"{y.flatten()[at].item()!r}, not {ref.flatten()[at].item()!r}")


@torch.no_grad()
def _run(setting, inputs) -> list[torch.Tensor]:
    wide = None if setting.dtype == torch.float64 else torch.float32
    options = {"signed": setting.signed, "axis": setting.axis, "out_dtype": wide}
    return cv.QUANTIZERS[setting.op].call(setting, inputs, options)


def _jobs(device: str) -> list[tuple[str, str, dict]]:
    """(label, backend, environment) of every worker for `device`."""
    jobs = []
    for backend in BACKENDS[device]:
        if backend == "cpu":
            jobs += [(f"C++ {isa}", backend, {"MBQ_CPU_ISA": isa}) for isa in INSTRUCTION_SETS]
        else:
            interpret = backend == "triton" and device == "cpu"
            jobs.append((backend, backend, {"TRITON_INTERPRET": "1"} if interpret else {}))
    return jobs


def _work(arguments) -> dict:
    """What a worker answers: its Tally, or why it is skipped."""
    wish, has = os.environ.get("MBQ_CPU_ISA"), (build() or {}).get("instruction_set", "")
    if arguments.worker == "cpu" and has and wish and has.removeprefix("x86-64-") != wish:
        return {"skipped": f"this processor has {has}"}
    return asdict(sweep(arguments.worker, arguments.values, arguments.device, arguments.seed))


def _subprocess(backend: str, environment: dict, arguments) -> dict:
    command = [sys.executable, __file__, "--worker", backend, "--values", str(arguments.values), "--device",
               arguments.device, "--seed", str(arguments.seed)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, capture_output=True, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment)
    if result.returncode:
        return {"error": (result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1]}
    return json.loads(result.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=float, default=1e8, help="values compared per backend, at least")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=sorted({name for names in BACKENDS.values() for name in names}),
                        help="backends to check [default all]")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(_work(arguments)))
        return 0
    jobs = [job for job in _jobs(arguments.device) if not arguments.only or job[1] in arguments.only]
    if not jobs:
        parser.error(f"--only: on {arguments.device} there are {', '.join(BACKENDS[arguments.device])}")
    failed = False
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() if arguments.device == "cpu" else 1) as pool:
        running = [(label, pool.submit(_subprocess, backend, environment, arguments))
                   for label, backend, environment in jobs]
        for label, future in running:
            answer = future.result()
            failed |= not ("skipped" in answer or _passed(answer, arguments.values))
            print(f"{label:20}", _line(answer), *answer.get("first", []), sep="\n    ", flush=True)
    print("FAILED" if failed else "every code is the same")
    return int(failed)


def _passed(answer: dict, values: float) -> bool:
    return answer.get("compared", 0) >= values > 0 and answer["mismatches"] == 0


def _line(answer: dict) -> str:
    if "compared" not in answer:
        return " ".join(f"{key}: {value}" for key, value in answer.items())
    return f"{answer['compared']:,} values, {answer['mismatches']:,} mismatches, {answer['seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
