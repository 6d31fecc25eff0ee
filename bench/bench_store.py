"""mbq_store: one layer of a store switched, packed or dequantized, against numpy and a copy of as many bytes.

    pytest bench/bench_store.py [--mbq-json FILE] [--mbq-small]

Bytes are those read from the mapped file plus those written; results go to memory that exists, as the copy's do. The
copy and "mbq store" run on one thread. Every result is compared with numpy's, bit for bit, before anything is timed.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import timing

import mbq_store

OURS = "mbq store"
SHAPES = {"4096x16384": (4096, 16384), "512x512x3x3": (512, 512, 3, 3), "1024x1x3x3": (1024, 1, 3, 3)}
WORK = [("codes", "codes", 4), ("codes", "packed", 4), ("codes", "packed", 2), ("codes", "dequantize", 8),
        ("codes", "dequantize", 4), ("planes", "codes", 4), ("planes", "dequantize", 8), ("planes", "dequantize", 4)]


@dataclass(frozen=True)
class Case:
    """Store.<call>(layer, bits) of an 8-bit layer kept as `layout`; planes are rounded half up, codes half to even."""
    shape: str
    layout: str
    call: str
    bits: int

    @property
    def rounding(self) -> str:
        return "half_up" if self.layout == "planes" else "half_even"

    @property
    def name(self) -> str:
        return f"store-{self.layout}-{self.shape}-{self.call}-{self.bits}bit"


def numpy_codes(case: Case, stored: np.ndarray, shape) -> np.ndarray:
    """int8 codes at the case's bit-width, as numpy does it in few lines."""
    if case.layout == "planes":
        count = int(np.prod(shape[1:]))
        bits = np.unpackbits(stored, axis=-1, count=count, bitorder="little")
        stored = np.packbits(bits, axis=0).reshape(shape).view(np.int8)  # first plane, highest bit
    shift = 8 - case.bits
    if shift == 0:
        return stored
    wide = stored.astype(np.int16)
    bias = (1 << (shift - 1)) - 1 + ((wide >> shift) & 1) if case.rounding == "half_even" else 1 << (shift - 1)
    return np.minimum((wide + bias) >> shift, (1 << (case.bits - 1)) - 1).astype(np.int8)


def numpy_result(case: Case, stored: np.ndarray, scale: np.ndarray, shape) -> np.ndarray:
    codes = numpy_codes(case, stored, shape)
    if case.call == "codes":
        return codes
    rows = codes.reshape(shape[0], -1)
    if case.call == "dequantize":
        return (rows * (scale * np.float32(2 ** (8 - case.bits)))[:, None]).reshape(shape)
    per_byte = 8 // case.bits
    fields = np.pad(rows, ((0, 0), (0, -rows.shape[1] % per_byte))).view(np.uint8) & ((1 << case.bits) - 1)
    return sum(fields[:, k::per_byte] << (k * case.bits) for k in range(per_byte))


def steps_of(case: Case, shape, path) -> tuple[dict[str, Callable], int]:
    """What is timed, once all of it agrees, and the bytes it moves."""
    codes = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    scale = np.linspace(0.01, 0.02, shape[0], dtype=np.float32)
    mbq_store.write(path, [mbq_store.LayerData("w", codes, scale, layout=case.layout)], rounding=case.rounding)
    one, every = mbq_store.open(path, threads=1), mbq_store.open(path)
    stored = codes
    if case.layout == "planes":
        from_planes = min(case.bits + 1, 8)
        stored = np.frombuffer(path.read_bytes()[one.entry("w.planes").begin:], np.uint8, one.entry("w.planes").bytes)
        stored = stored.reshape(8, shape[0], -1)
        stored = np.concatenate([stored[:from_planes], np.zeros_like(stored[from_planes:])])
    wanted = numpy_result(case, stored, scale, shape)
    out = getattr(one, case.call)("w", case.bits)
    moved = one.bytes_read + out.nbytes
    for store in (one, every):
        out[...] = 1
        np.testing.assert_array_equal(getattr(store, case.call)("w", case.bits, out=out), wanted, strict=True)
    source, target = (np.ones(moved // 2, np.uint8) for _ in range(2))
    return {"copy": lambda: np.copyto(target, source),
            OURS: lambda: getattr(one, case.call)("w", case.bits, out=out),
            f"{OURS}, {every.threads} threads": lambda: getattr(every, case.call)("w", case.bits, out=out),
            "numpy": lambda: numpy_result(case, stored, scale, shape)}, moved


def rows_of(case: Case, steps: dict[str, Callable], moved: int) -> list[dict]:
    samples = timing.wall_clock(steps, dict.fromkeys(steps, contextlib.nullcontext))
    rows = [{"case": case.name, "op": "store", "candidate": name, "timer": "wall clock", "bytes": moved, "differs": "",
             "check": "" if name == "copy" else "bit for bit", **timing.summary(values)}
            for name, values in samples.items()]
    times = {row["candidate"]: row["ms_p50"] for row in rows}
    for row in rows:
        row.update(gbps=moved / row["ms_p50"] / 1e6, copy_fraction=times["copy"] / row["ms_p50"],
                   ratio_to_ours=row["ms_p50"] / times[OURS])
    return rows


@pytest.mark.parametrize("case", [Case(shape, *work) for shape in SHAPES for work in WORK], ids=lambda case: case.name)
def test_store(case, device, pytestconfig, record, tmp_path):
    if device != "cpu":
        pytest.skip("stores are read on the CPU")
    shape = SHAPES[case.shape]
    if pytestconfig.getoption("--mbq-small"):
        shape = tuple(min(size, 24) for size in shape)
    record(rows_of(case, *steps_of(case, shape, tmp_path / "store")))
