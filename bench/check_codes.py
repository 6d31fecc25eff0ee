"""Compare every op between backends: codes and values bit for bit, sums within bounds.

    python bench/check_codes.py --values 1e8 [--device cuda] [--ops OP...]

x_hat in the dtype of the arithmetic is one value per code, so equal x_hat are equal codes. On the CPU the PyTorch
reference is compared with NumPy, where an op is not bounded alone, C++ (once per instruction set) and Triton
(interpreted) with the reference. With --device cuda the CUDA and the Triton kernels are compared with the reference on
the CPU.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "python"), str(Path(__file__).parent)]

import code_integers  # noqa: E402
import code_lsb  # noqa: E402
import code_quantizers  # noqa: E402
import code_values as cv  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402

from mbq_kernels import backends, use_backend  # noqa: E402
from mbq_kernels._library import build  # noqa: E402

SWEEPS = {**code_quantizers.SWEEPS, **code_lsb.SWEEPS, **code_integers.SWEEPS}  # by op
BACKENDS = {"cpu": ("triton", "reference", "cpu"), "cuda": ("cuda", "triton")}  # compared on each device
INSTRUCTION_SETS = ("baseline", "v3", "v4")  # MBQ_CPU_ISA
ERRORS = {torch.float32: 1e-5, torch.float64: 1e-9, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}  # of sizes
SHOWN = 5
EVERY_SETTING = 3e7  # about how many values all settings have at least


@dataclass
class Tally:
    """What one sweep compared, and where it differed: readable lines, the first SHOWN.

    compared: values that must have the same bits; where an op has sums alone, the numbers that went into them.
    """
    backend: str
    ops: list[str] = field(default_factory=list)
    compared: int = 0
    mismatches: int = 0
    first: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, setting, name: str, got: torch.Tensor, want: torch.Tensor, wrong: torch.Tensor) -> None:
        if got.shape != want.shape or got.dtype != want.dtype or bool(wrong.any()):
            at = wrong.flatten().nonzero()[0].item() if wrong.any() else 0
            self.mismatches += max(int(wrong.sum()), 1)
            if len(self.first) < SHOWN:
                self.first.append(f"{setting} {name} flat index {at}: {got.flatten()[at].item()!r} {got.dtype}, not "
                                  f"{want.flatten()[at].item()!r} {want.dtype}")


def sweep(backend: str, values: float, device: str = "cpu", seed: int = 0, ops: Sequence[str] = ()) -> Tally:
    """Compare `backend` with the definition on at least `values` values; the same ones for the same seed.

    ops: of SWEEPS, those that the backend has; none: all of them.
    """
    start, dtypes = time.perf_counter(), cv.DTYPES if backend in ("reference", "cpu") else cv.DTYPES[:3]
    chosen = {op: SWEEPS[op] for op in ops or SWEEPS if backend in backends(op, device)
              and (backend != "reference" or SWEEPS[op].definition)}
    tally, settings = Tally(backend, sorted(chosen)), []
    for each in chosen.values():
        every = list(each.settings(dtypes))
        if values < EVERY_SETTING:  # a quick look: some of the settings of each op, all of their ties and edges
            every = random.Random(seed).sample(every, max(1, round(len(every) * values / EVERY_SETTING)))
        settings += every
    rounds = 3 if values > EVERY_SETTING else 1
    interpreting = backend == "triton" and device == "cpu"
    with np.errstate(all="ignore"), _large_tiles() if interpreting else contextlib.nullcontext():
        while settings and tally.compared < values:
            for r in range(rounds):
                share = int(max(values - tally.compared, 0) / (rounds - r) / len(settings))
                for i, setting in enumerate(settings):
                    generator = torch.Generator().manual_seed(seed + 1000 * r + i)
                    _compare(tally, setting, SWEEPS[setting.op].inputs(setting, share, generator, r + i), backend,
                             device)
            seed += 7919
    tally.seconds = time.perf_counter() - start
    return tally


@contextlib.contextmanager
def _large_tiles():
    """Triton programs over 64 Ki elements: the interpreter's cost is per program, the arithmetic is the same."""
    from mbq_kernels.triton import _tiling
    tile, _tiling.TILE = _tiling.TILE, 2**16
    try:
        yield
    finally:
        _tiling.TILE = tile


def _compare(tally: Tally, setting, inputs, backend: str, device: str) -> None:
    sweep_of = SWEEPS[setting.op]
    if backend == "reference":
        with use_backend("reference"):
            got = sweep_of.call(setting, inputs).exact
        pairs = zip(got, sweep_of.definition(setting, inputs), strict=False)  # gradients have no definition here
        bounded = ()
    else:
        with use_backend("reference"):
            want = sweep_of.call(setting, inputs)
        with use_backend(backend):
            got = sweep_of.call(setting, tree_map_only(torch.Tensor, lambda x: x.to(device), inputs))
        pairs = zip(got.exact, want.exact, strict=True)
        tally.compared += 0 if got.exact else sum(x.numel() for x in tree_leaves(inputs))
        bounded = zip(got.bounded, want.bounded, sweep_of.sizes(setting, inputs, want), strict=True)
    for k, (y, ref) in enumerate(pairs):
        y = y.detach().cpu()
        tally.compared += y.numel()
        tally.add(setting, f"result {k}", y, ref, ~((y == ref) | ((y != y) & (ref != ref))))
    for k, (y, ref, size) in enumerate(bounded):
        y = y.detach().cpu()
        close = (y.double() - ref.double()).abs() <= ERRORS[ref.dtype] * size + torch.finfo(ref.dtype).tiny
        tally.add(setting, f"sum {k}", y, ref, ~(close | ((y != y) & (ref != ref)) | (y == ref)))


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
    return asdict(sweep(arguments.worker, arguments.values, arguments.device, arguments.seed, arguments.ops))


def _subprocess(backend: str, environment: dict, arguments) -> dict:
    command = [sys.executable, __file__, "--worker", backend, "--values", str(arguments.values), "--device",
               arguments.device, "--seed", str(arguments.seed), "--ops", *arguments.ops]
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
    parser.add_argument("--ops", nargs="*", choices=sorted(SWEEPS), default=[], help="ops to compare [default: all]")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(_work(arguments)))
        return 0
    jobs = [job for job in _jobs(arguments.device) if not arguments.only or job[1] in arguments.only]
    if not jobs:
        parser.error(f"--only: on {arguments.device} there are {', '.join(BACKENDS[arguments.device])}")
    failed = False
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
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
    return (f"{answer['compared']:,} values of {len(answer['ops'])} ops, {answer['mismatches']:,} mismatches, "
            f"{answer['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
