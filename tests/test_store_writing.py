"""Writing stores: whole or not at all, readable by others, and what cannot be written. Runs without torch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import stores

import mbq_store
from mbq_store import LayerData

OLD, NEW = 0.25, 0.5


def in_another_process(path, before):
    """Run `before`, then write over the store at `path` 200 kB in another process; its exit status and last line."""
    script = f"""
import numpy as np, mbq_store, os, resource, signal
{before}
layer = mbq_store.LayerData("w", np.ones((100, 2000), np.int8), np.float32([{NEW}]))
try:
    mbq_store.write({str(path)!r}, [layer], rounding="half_even")
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("before, status, message, left", [
    # a limit on the size of files fails a write as a full disk does
    ("signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))", 0,
     "File too large", 0),
    ("os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)", -9, "", 1),
    ("os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)", -9, "", 1),
    ("", 0, "", 0),
], ids=["disk full", "killed writing", "killed before the rename", "whole"])
def test_old_file_stays_until_the_new_one_is_whole(tmp_path, before, status, message, left):
    path = tmp_path / "s"
    mbq_store.write(path, [LayerData("w", np.ones((2, 3), np.int8), np.float32([OLD]))], rounding="half_up")
    old = mbq_store.open(path)
    assert in_another_process(path, before) == (status, message)
    assert mbq_store.open(path).dequantize("w").flat[0] == (OLD if before else NEW)
    assert len(list(tmp_path.iterdir())) == 1 + left
    assert (old.dequantize("w") == OLD).all()  # and a reader of the old file keeps it


def test_safetensors_reads_what_is_written(tmp_path):
    numpy_reader = pytest.importorskip("safetensors.numpy")
    layers = stores.small_store(tmp_path / "s", layout="codes")
    with numpy_reader.safe_open(tmp_path / "s", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("conv.codes"), layers[0].codes)
        np.testing.assert_array_equal(file.get_tensor("head.scale"), layers[1].scale)
        np.testing.assert_array_equal(file.get_tensor("conv.bias"), [0, 1, 2])
        assert file.get_tensor("bn.num_batches_tracked") == 7
        assert file.get_slice("norm.weight").get_dtype() == "BF16"
        assert json.loads(file.metadata()["mbq_store"])["version"] == 1


def test_rest(tmp_path):
    values = np.float32([1.0, 1.00390625, 1.01171875, -0.0, 3.4e38, np.inf, -np.inf, np.nan, 1e-45])
    rest = {"bf16": mbq_store.to_bfloat16(values), "nothing": np.zeros((0, 3), np.float16), "flag": np.array([True]),
            "0d": np.array(-1, np.int64), "0d bf16": mbq_store.to_bfloat16(np.array(3, np.float32)),
            "transposed": np.arange(6.0).reshape(2, 3).T, "ünï.😀": np.array([1], np.uint8)}
    mbq_store.write(tmp_path / "s", [], rest, rounding="half_even", metadata={"made by": "a test"})
    store = mbq_store.open(tmp_path / "s")
    assert set(store.rest) == set(rest) and store.layers == () and store.metadata == {"made by": "a test"}
    # 1 + 2^-8 and 1 + 3 * 2^-8 lie in the middle: to even
    expected = np.float32([1.0, 1.0, 1.015625, -0.0, np.inf, np.inf, -np.inf, np.nan, 0.0])
    np.testing.assert_array_equal(store.tensor("bf16"), expected, strict=True)
    np.testing.assert_array_equal(store.tensor("bf16", widen=False), rest["bf16"].bits, strict=True)
    np.testing.assert_array_equal(store.tensor("0d bf16"), np.array(3, np.float32), strict=True)
    for name in ("nothing", "flag", "0d", "transposed", "ünï.😀"):
        np.testing.assert_array_equal(store.tensor(name), rest[name], strict=True)
        assert not store.tensor(name).flags.writeable
    view = store.tensor("transposed")
    store.close()
    np.testing.assert_array_equal(view, rest["transposed"])


def layer(**changes):
    return LayerData(**{"name": "w", "codes": np.zeros((2, 3), np.int8), "scale": np.float32([1, 1]), **changes})


@pytest.mark.parametrize("arguments, error, message", [
    (([layer(codes=np.zeros((2, 3)))],), TypeError, "write: codes of 'w' must be an array of int8, got float64"),
    (([layer(codes=np.zeros((2, 3), np.uint8))],), TypeError, "codes of 'w' must be an array of int8, got uint8"),
    (([layer(codes=np.array(1, np.int8))],), ValueError, r"write: shape must be 1 to 32 sizes, got \(\)"),
    (([layer(codes=np.int8([[9], [0]]), bits=4)],), ValueError, "must be signed codes of 4 bits, got 0 to 9"),
    (([layer(scale=np.ones(2))],), TypeError, "scale of 'w' must be an array of float32, got float64"),
    (([layer(scale=np.float32([1, 1, 1]))],), ValueError, "scale of 'w' must have 1 or 2 elements"),
    (([layer(scale=np.float32([1, 0]))],), ValueError, "scale of 'w' must be positive and finite, got 0.0 to 1.0"),
    (([layer(scale=np.float32([1, np.nan]))],), ValueError, "scale of 'w' must be positive and finite"),
    (([layer(offset=np.float32([1, np.inf]))],), ValueError, "offset of 'w' must be finite"),
    (([layer(bits=0)],), ValueError, "write: bits must be between 1 and 8, got 0"),
    (([layer(bits=4, layout="packed")],), ValueError, "write: layout must be codes or planes unless"),
    (([layer(), layer()],), ValueError, "write: layers must have different names, got 'w' twice"),
    (([layer(name="")],), ValueError, "write: name must not be empty"),
    (([layer(signed=1)],), TypeError, "write: signed must be true or false, got 1"),
    (([layer()], {"w.scale": np.zeros(2)}), ValueError, "rest must have names that are no layer's, got 'w.scale'"),
    (([layer()], {"x": [1.0]}), TypeError, "rest must hold arrays of numbers or BFloat16, got list in 'x'"),
    (([layer()], {"x": np.array(["a"])}), TypeError, "rest must hold arrays of numbers or BFloat16, got <U1 in 'x'"),
])
def test_what_no_store_can_hold(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        mbq_store.write(tmp_path / "s", *arguments, rounding="half_even")
    with pytest.raises(ValueError, match="write: rounding must be one of half_even, half_up, got 'floor'"):
        mbq_store.write(tmp_path / "s", [], rounding="floor")
    with pytest.raises(ValueError, match="write: metadata must map strings"):
        mbq_store.write(tmp_path / "s", [], rounding="half_up", metadata={"mbq_store": "x"})
    assert os.listdir(tmp_path) == []
