"""Codes and weights of a store at every bit-width, against Python integers. Runs without torch."""

import os
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import stores
from stores import ROUNDINGS

import mbq_store
from mbq_store import LayerData

SHAPES = [(1, 1), (1,), (7,), (5, 1), (3, 7), (2, 8), (4, 3, 3, 3), (13, 9), (2, 4096), (2, 4097), (1, 12289), (3, 0),
          (0, 5)]
ONE_BIT_WIDTH = [("codes", bits) for bits in range(1, 9)] + [("planes", bits) for bits in range(2, 9)] + [
    ("packed", bits) for bits in (1, 2, 4)]


def written(path, layers, rounding="half_even", **more):
    mbq_store.write(path, layers, rounding=rounding, **more)
    return mbq_store.open(path)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("layout", ["codes", "planes"])
@pytest.mark.parametrize("high", range(2, 9))
def test_every_code_at_every_pair_of_bit_widths(tmp_path, high, layout, rounding):
    lo, hi = stores.bounds(high)
    codes = np.arange(lo, hi + 1, dtype=np.int8).reshape(2, -1)
    store = written(tmp_path / "s", [LayerData("w", codes, np.float32([1]), bits=high, layout=layout)], rounding)
    assert store.layer("w").bit_widths == tuple(range(high, 1, -1))
    for bits in range(2, high + 1):
        expected = [stores.switched(code, high, bits, rounding) for code in range(lo, hi + 1)]
        assert store.codes("w", bits).reshape(-1).tolist() == expected


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("layout", ["codes", "planes"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(tmp_path, shape, layout, rounding):
    layer = stores.random_layer("w", shape, layout=layout, offset=True)
    store = written(tmp_path / "s", [layer], rounding)
    for bits in (8, 7, 4, 2):
        codes = stores.switched_array(layer.codes, 8, bits, rounding)
        np.testing.assert_array_equal(store.codes("w", bits), codes, strict=True)
        np.testing.assert_array_equal(store.dequantize("w", bits),
                                      stores.weights(codes, layer.scale, 8, bits, layer.offset), strict=True)
        if bits != 7:
            np.testing.assert_array_equal(store.packed("w", bits), stores.packed(codes, bits), strict=True)


@pytest.mark.parametrize("layout, bits", ONE_BIT_WIDTH)
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_layers_of_one_bit_width(tmp_path, bits, signed, layout):
    layer = stores.random_layer("w", (5, 77), bits=bits, signed=signed, layout=layout, switchable=False, offset=True)
    store = written(tmp_path / "s", [layer])
    np.testing.assert_array_equal(store.codes("w"), layer.codes, strict=True)
    weights = stores.weights(layer.codes, layer.scale, bits, bits, layer.offset)
    np.testing.assert_array_equal(store.dequantize("w"), weights, strict=True)
    if bits in (1, 2, 4, 8):
        np.testing.assert_array_equal(store.packed("w"), stores.packed(layer.codes, bits, signed), strict=True)
    other = 2 if bits != 2 else 3
    with pytest.raises(ValueError, match=f"codes: bits must be what .* not switchable, {bits}, got {other}"):
        store.codes("w", other)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("layout", ["codes", "planes"])
def test_results_beyond_the_cache_on_several_threads(tmp_path, layout, threads):
    """More than 32 MiB of weights go past the cache, in tasks on several threads."""
    layer = stores.random_layer("w", (1031, 9001), layout=layout)
    mbq_store.write(tmp_path / "s", [layer], rounding="half_up")
    store = mbq_store.open(tmp_path / "s", threads=threads)
    codes = np.minimum((layer.codes.astype(np.int16) + 8) >> 4, 7).astype(np.int8)
    np.testing.assert_array_equal(store.codes("w", 4), codes)
    np.testing.assert_array_equal(store.dequantize("w", 4), codes * (layer.scale * 16)[:, None])


@pytest.mark.parametrize("isa", ["baseline", "v3", "v4"])
def test_every_instruction_set(isa):
    """The same tests, each set in its own process: the set is chosen once."""
    chosen = "test_every_code or test_shapes or test_layers_of_one"
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, check=False, env={**os.environ, "MBQ_CPU_ISA": isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("high", [5, 8])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_planes_are_read_partially_with_half_up(tmp_path, rounding, high):
    layer = stores.random_layer("w", (6, 1000), bits=high, layout="planes")
    store = written(tmp_path / "s", [layer], rounding)
    plane = 6 * 125
    for bits in range(2, high + 1):
        before = store.bytes_read
        codes = store.codes("w", bits)
        planes = min(bits + 1, high) if rounding == "half_up" else high
        assert store.bytes_read - before == planes * plane
        np.testing.assert_array_equal(codes, stores.switched_array(layer.codes, high, bits, rounding))


def test_planes_that_are_not_read_do_not_matter(tmp_path):
    """Lower planes overwritten in the file change nothing above; the lowest that is read does."""
    layer = stores.random_layer("w", (6, 1000), layout="planes")
    store = written(tmp_path / "s", [layer], "half_up")
    entry, expected = store.entry("w.planes"), store.codes("w", 4)
    data = bytearray((tmp_path / "s").read_bytes())
    for first, same in ((5, True), (4, False)):
        data[entry.begin + first * 750:entry.end] = os.urandom((8 - first) * 750)
        (tmp_path / "t").write_bytes(data)
        assert (mbq_store.open(tmp_path / "t").codes("w", 4) == expected).all() == same


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    stores.small_store(tmp_path / "s")
    store = mbq_store.open(tmp_path / "s")
    store.summary()
    assert store.bytes_read == 0
    store.tensor("conv.bias")
    assert store.bytes_read == 12


def test_switching_takes_no_more_memory_than_its_result(tmp_path):
    layer = stores.random_layer("w", (512, 4099))
    store = written(tmp_path / "s", [layer])
    for call, size in ((store.codes, 512 * 4099), (store.packed, 512 * 2050), (store.dequantize, 4 * 512 * 4099)):
        tracemalloc.start()
        call("w", 4)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size <= peak <= size + 20_000, call


def test_out(tmp_path):
    layer = stores.random_layer("w", (4, 9))
    store = written(tmp_path / "s", [layer])
    out = np.full((4, 9), np.nan, np.float32)
    assert store.dequantize("w", 4, out=out) is out
    np.testing.assert_array_equal(out, store.dequantize("w", 4))
    with pytest.raises(TypeError, match="dequantize: out must be an array of float32, got float64"):
        store.dequantize("w", out=np.empty((4, 9)))
    frozen = np.empty((4, 9), np.float32)
    frozen.flags.writeable = False
    for bad in (np.empty((9, 4), np.float32), np.empty((9, 4), np.float32).T, frozen):
        with pytest.raises(ValueError, match=r"dequantize: out must be contiguous, aligned, writeable and of shape"):
            store.dequantize("w", out=bad)


def test_codes_from_non_contiguous_and_0d_scale(tmp_path):
    codes = np.asfortranarray(np.arange(-60, 60, dtype=np.int8).reshape(4, 5, 6).transpose(0, 2, 1))
    store = written(tmp_path / "s", [LayerData("w", codes, np.array(0.5, np.float32))])
    np.testing.assert_array_equal(store.codes("w"), codes)
    np.testing.assert_array_equal(store.dequantize("w"), codes * np.float32(0.5))


def test_one_store_serves_several_threads(tmp_path):
    layer = stores.random_layer("w", (64, 5000), layout="planes")
    store = written(tmp_path / "s", [layer], "half_up")
    expected = {bits: store.dequantize("w", bits) for bits in (8, 4, 2)}
    before, wrong = store.bytes_read, []

    def work(bits):
        for _ in range(20):
            if not np.array_equal(store.dequantize("w", bits), expected[bits]):
                wrong.append(bits)
    workers = [threading.Thread(target=work, args=(bits,)) for bits in (8, 4, 2, 8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and store.bytes_read - before == 20 * ((8 + 5 + 3 + 8) * 64 * 625 + 4 * 64 * 4)


def test_python_runs_while_a_layer_is_switched(tmp_path):
    """The interpreter lock is released: another thread gets on in the middle of a call."""
    layer = LayerData("w", np.zeros((1000, 20000), np.int8), np.float32([1]))
    mbq_store.write(tmp_path / "s", [layer], rounding="half_even")
    store, out = mbq_store.open(tmp_path / "s", threads=1), np.zeros((1000, 20000), np.float32)
    times, stop = [], threading.Event()
    ticker = threading.Thread(target=lambda: [times.append(time.perf_counter()) for _ in iter(stop.is_set, True)])
    ticker.start()
    try:
        for _ in range(50):
            times.clear()
            start = time.perf_counter()
            store.dequantize("w", 4, out=out)
            end = time.perf_counter()
            quarter = (end - start) / 4
            if any(start + quarter < t < end - quarter for t in list(times)):
                return
    finally:
        stop.set()
        ticker.join()
    pytest.fail("no other thread ran in the middle of 50 calls")


@pytest.mark.parametrize("call, error, message", [
    (lambda s: s.codes("conv", 9), ValueError, "codes: bits must be between 2 and 8, got 9"),
    (lambda s: s.codes("conv", 1), ValueError, "codes: bits must be between 2 and 8, got 1"),
    (lambda s: s.codes("conv", 4.0), TypeError, "codes: bits must be an integer, got 4.0"),
    (lambda s: s.codes("conv", True), TypeError, "codes: bits must be an integer, got True"),
    (lambda s: s.dequantize("head", 2), ValueError, "dequantize: .* which is not switchable, 4, got 2"),
    (lambda s: s.packed("conv", 3), ValueError, r"packed: bits must be 1, 2, 4 or 8 \(others cross bytes\), got 3"),
    (lambda s: s.codes("nothing"), ValueError, "layer: name must be a layer of .*, got 'nothing'"),
    (lambda s: s.tensor("conv.scale"), ValueError, "tensor: name must be one of the rest of .*, got 'conv.scale'"),
    (lambda s: mbq_store.open(s.path, threads=0), ValueError, "open: threads must be at least 1, got 0"),
    (lambda s: s.entry("x"), ValueError, "entry: name must be a tensor of .*, got 'x'"),
    (lambda s: (s.close(), s.codes("conv")), ValueError, "store: .* must be open, got a closed store"),
])
def test_errors(tmp_path, call, error, message):
    stores.small_store(tmp_path / "s")
    with pytest.raises(error, match=message):
        call(mbq_store.open(tmp_path / "s"))
