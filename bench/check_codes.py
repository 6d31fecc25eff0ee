"""Are the codes bit-identical on every backend?   python bench/check_codes.py --values 1e8 [--device cuda]

x_hat in the dtype of the arithmetic is one value per code, so equal x_hat are equal codes. The PyTorch reference is
compared with NumPy, every other backend with the reference: C++ once per instruction set, Triton in its interpreter.
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

sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402

import code_values as cv  # noqa: E402
from mbq_kernels import fake_quantize, fake_quantize_affine, fake_quantize_multi, use_backend  # noqa: E402

ISA_NEEDS = {"baseline": (), "v3": ("avx2", "bmi1", "bmi2", "fma", "f16c", "movbe", "abm"),
             "v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")}
MULTI_BITS = ((8, 6, 4, 2), (1, 3, 5, 7))
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

    Covers fake_quantize, _multi and _affine x dtypes x bits x signed x per tensor, first and last axis x offset.
    """
    tally, start = Tally(backend), time.perf_counter()
    dtypes = cv.DTYPES if backend in ("reference", "cpu") else cv.DTYPES[:3]
    settings = list(cv.settings(dtypes, MULTI_BITS))
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
    from mbq_kernels.triton import elementwise
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
    common = dict(bits=setting.bits if setting.op == "fake_quantize_multi" else setting.bits[0],
                  signed=setting.signed, axis=setting.axis, out_dtype=wide)
    if setting.op == "fake_quantize":
        return [fake_quantize(inputs.x, inputs.scales[0], inputs.offsets and inputs.offsets[0], **common)]
    if setting.op == "fake_quantize_multi":
        return list(fake_quantize_multi(inputs.x, inputs.scales, inputs.offsets, **common))
    lo, hi = cv.code_range(setting.bits[0], setting.signed)
    return [fake_quantize_affine(inputs.x, inputs.scales[0], inputs.offsets[0], quant_min=int(lo), quant_max=int(hi),
                                 axis=setting.axis)]


def _jobs(device: str) -> list[tuple[str, str, dict, str | None]]:
    """(label, backend, environment, why it is skipped) for everything that can run on `device`."""
    if device == "cuda":
        return [("cuda", "cuda", {}, None), ("triton", "triton", {}, None)]
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    jobs = [("triton interpreted", "triton", {"TRITON_INTERPRET": "1"}, None), ("reference", "reference", {}, None)]
    for isa, needs in ISA_NEEDS.items():
        missing = [flag for flag in needs if flag not in flags]
        jobs.append((f"C++ {isa}", "cpu", {"MBQ_CPU_ISA": isa},
                     f"this processor lacks {' '.join(missing)}" if missing else None))
    return jobs


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
    parser.add_argument("--only", nargs="*", help="backends to check [default all]")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(asdict(sweep(arguments.worker, arguments.values, arguments.device, arguments.seed))))
        return 0
    failed = False
    jobs = [job for job in _jobs(arguments.device) if not arguments.only or job[1] in arguments.only]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() if arguments.device == "cpu" else 1) as pool:
        running = [(label, reason, None if reason else pool.submit(_subprocess, backend, environment, arguments))
                   for label, backend, environment, reason in jobs]
        for label, reason, future in running:
            answer = {"skipped": reason} if reason else future.result()
            failed |= "error" in answer or answer.get("mismatches", 0) > 0
            print(f"{label:20}", _line(answer), *answer.get("first", []), sep="\n    ", flush=True)
    print("FAILED" if failed else "every code is the same")
    return int(failed)


def _line(answer: dict) -> str:
    if "compared" not in answer:
        return " ".join(f"{key}: {value}" for key, value in answer.items())
    return f"{answer['compared']:,} values, {answer['mismatches']:,} mismatches, {answer['seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
