"""Predict what an op takes on a GPU at best, from the bytes and the instructions of its launches. Nothing is measured.

A call takes as long as a copy of its bytes, 4.7 us + bytes / bandwidth (of copies of 134 to 537 MB in
results/h100.json), or, in every launch where that is longer, as long as the processors take to issue what its machine
code executes for every element (machine_code.json, which tests/machine_code.py writes).
"""

import functools
import importlib
import json
from dataclasses import dataclass
from pathlib import Path

COUNTS = Path(__file__).with_name("machine_code.json")
LAUNCH = 4.7e-6  # seconds
MANY_BITS = ("fake_quantize_multi", "fake_quantize_foreach", "double_round")
CODES = {"8to4": "switch_bits_forward int8", "8to4-float32": "dequantize_codes_forward float32",
         "float32": "quantize_codes_forward float32", "4bits": "pack_codes_forward 4 bits",
         "unpack-4bits": "unpack_codes_forward 4 bits", "8bits": "to_planes_forward 8 bits",
         "from_planes-8to4": "from_planes_forward 8 to 4 bits"}  # by the beginning of a case's shape


@dataclass(frozen=True)
class Gpu:
    name: str
    bandwidth: float  # bytes a second, of a copy
    slots: float = 132 * 128 * 1.98e9  # instructions a second: multiprocessors x lanes x clock


GPUS = (Gpu("H100", 3.04e12), Gpu("H200", 4.3e12))


@functools.cache
def counts() -> dict:
    return json.loads(COUNTS.read_text())


def cases() -> dict:
    """Return the cases of every benchmark of an op, by name."""
    files = [path for path in sorted(Path(__file__).parent.glob("bench_*.py")) if "\nCASES = " in path.read_text()]
    return {case.name: case for path in files for case in importlib.import_module(path.stem).CASES}


def paths_of(case) -> tuple[str, ...]:
    """Return the names in machine_code.json of what a case launches; none where nothing was counted."""
    dtype, levels = str(case.dtype).removeprefix("torch."), f" x{len(case.bits)}" if case.op in MANY_BITS else ""
    if case.op == "switched_linear":
        layout = case.layout if case.layout == "codes" else f"{case.bits[0]} planes"
        names = [f"{case.op}_forward bfloat16 {layout}"] if case.rows == 1 else []
    elif name := CODES.get(case.shape.rpartition("-")[0]):
        names = [name]
    else:
        names = [f"{case.op}_{direction} {dtype}{levels}" for direction in case.what.split("+")]
    return tuple(names) if all(name in counts()["paths"] for name in names) else ()


@dataclass(frozen=True)
class Prediction:
    """share: of the bandwidth of a copy of the main tensor, None beside copies of many; limit: memory or instructions,
    bytes alone where instructions are not counted."""
    seconds: float
    share: float | None
    limit: str


def copy_seconds(moved: float, gpu: Gpu) -> float:
    return LAUNCH + moved / gpu.bandwidth


def predict(case, gpu: Gpu) -> Prediction:
    launched = [counts()["paths"][name] for name in paths_of(case)]
    memory = [path["bytes"] * case.numel / gpu.bandwidth for path in launched]
    issue = [path["instructions"] * case.numel / gpu.slots for path in launched]
    seconds = LAUNCH + sum(map(max, memory, issue)) if launched else copy_seconds(case.bytes, gpu)
    limit = "instructions" if sum(issue) > sum(memory) else "memory" if launched else "bytes alone"
    copied = 2 * case.numel * case.dtype.itemsize
    share = case.bytes / seconds / (copied / copy_seconds(copied, gpu))
    return Prediction(seconds, share if len(getattr(case, "shapes", [None])) == 1 else None, limit)
