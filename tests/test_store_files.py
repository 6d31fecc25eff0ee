"""Files that are no stores, or no longer: StoreError that says why, never a crash. Runs without torch."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import mbq_store
import numpy as np
import pytest
import stores
from mbq_store import LayerData, StoreError


@pytest.fixture
def good(tmp_path):
    """Bytes of a small store."""
    stores.small_store(tmp_path / "good")
    stores.read_everything(tmp_path / "good")
    return (tmp_path / "good").read_bytes()


def refusal(path, data):
    """The StoreError that reading all of a file raises."""
    path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        stores.read_everything(path)
    assert str(path) in str(caught.value) and caught.value.reason in str(caught.value)
    return caught.value


def test_truncated_at_every_byte(tmp_path, good):
    for size in range(len(good)):
        refusal(tmp_path / "cut", good[:size])
    refusal(tmp_path / "long", good + b"\0")


def test_no_file(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StoreError, match="cannot be read"):
            mbq_store.open(path)


def edited(data, edit):
    """The file after edit(header, the store's metadata, its layers by name), or with the header that returns."""
    header, body = stores.split(data)
    described = json.loads(header["__metadata__"]["mbq_store"])
    made = edit(header, described, {layer["name"]: layer for layer in described["layers"]})
    if "__metadata__" in header:
        header["__metadata__"]["mbq_store"] = described.get("text", json.dumps(described))
    return stores.join(made if isinstance(made, bytes) else header, body)


def text(value):
    """Metadata text in place of the JSON."""
    return lambda header, store, layers: store.update(text=value)


def move(name, begin, end):
    def edit(header, store, layers):
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]
    return edit


def twice(header, store, layers):
    return json.dumps(header).replace('"conv.bias"', '"head.scale"').encode()


EDITS = {
    "no metadata": (lambda h, s, ls: h.pop("__metadata__") and None, "it is a safetensors|no store", None),
    "metadata not text": (lambda h, s, ls: h["__metadata__"].update(x=3), "must map names to strings", None),
    "not JSON": (text("{"), "metadata 'mbq_store' must be JSON", None),
    "deep JSON": (text("[" * 100_000), "metadata 'mbq_store' must be JSON", None),
    "NaN": (text('{"version": NaN}'), "NaN is not JSON", None),
    "not an object": (text("[]"), "version must be 1, got None", None),
    "version": (lambda h, s, ls: s.update(version=2), "version must be 1, got 2", None),
    "unknown field": (lambda h, s, ls: s.update(more=2), "must have exactly version, rounding", None),
    "rounding": (lambda h, s, ls: s.update(rounding="floor"), "rounding must be one of", None),
    "trained bits": (lambda h, s, ls: s.update(trained_bits=[8, 8]), "trained_bits must be different", None),
    "layers": (lambda h, s, ls: s.update(layers=7), "must be lists", None),
    "layer field": (lambda h, s, ls: ls["conv"].pop("signed") and None, "exactly name, shape, bits", None),
    "layer twice": (lambda h, s, ls: s["layers"].append(s["layers"][0]), "different names, got 'conv'", None),
    "layer unknown": (lambda h, s, ls: ls["conv"].update(name="cone"), "tensor 'cone.planes' is missing", "cone"),
    "surrogate": (lambda h, s, ls: ls["conv"].update(name="\ud800"), "surrogates not allowed", "\ud800"),
    "bits": (lambda h, s, ls: ls["conv"].update(bits=9), "bits must be between 1 and 8, got 9", "conv"),
    "bits lie": (lambda h, s, ls: ls["conv"].update(bits=7), r"must be U8 of shape \(7, 3, 3\)", "conv"),
    "signed": (lambda h, s, ls: ls["conv"].update(signed=1), "signed must be true or false", "conv"),
    "unsigned": (lambda h, s, ls: ls["conv"].update(signed=False), "switchable must be false", "conv"),
    "layout": (lambda h, s, ls: ls["conv"].update(layout="codes"), "'conv.codes' is missing", "conv"),
    "layout unknown": (lambda h, s, ls: ls["conv"].update(layout="zip"), "layout must be one of", "conv"),
    "packed switchable": (lambda h, s, ls: ls["head"].update(switchable=True), "layout must be codes or", "head"),
    "shape lies": (lambda h, s, ls: ls["conv"].update(shape=[3, 2, 3, 5]), r"must be U8 of shape \(8, 3, 4\)", "conv"),
    "channels lie": (lambda h, s, ls: ls["head"].update(shape=[3, 5]), "must be U8 of shape", "head"),
    "absurd shape": (lambda h, s, ls: ls["conv"].update(shape=[3, 2**70]), "must be of a possible size", "conv"),
    "absurd empty": (lambda h, s, ls: ls["conv"].update(shape=[0, 2**70]), "must be of a possible size", "conv"),
    "no shape": (lambda h, s, ls: ls["conv"].update(shape=[]), "shape must be 1 to", "conv"),
    "many dimensions": (lambda h, s, ls: ls["conv"].update(shape=[1] * 70), "shape must be 1 to", "conv"),
    "fractional shape": (lambda h, s, ls: ls["conv"].update(shape=[3, 18.0]), "shape must be 1 to", "conv"),
    "no scale": (lambda h, s, ls: h.update({"conv.skale": h.pop("conv.scale")}), "'conv.scale' is missing", "conv"),
    "scale dtype": (lambda h, s, ls: h["conv.scale"].update(dtype="I32"), "must be F32 of shape", "conv"),
    "scale shape": (lambda h, s, ls: h["conv.scale"].update(shape=[1, 3]), "must be F32 of shape", "conv"),
    "offset unsaid": (lambda h, s, ls: ls["head"].update(has_offset=False), "is not one of this layer's", "head"),
    "offset missing": (lambda h, s, ls: ls["conv"].update(has_offset=True), "'conv.offset' is missing", "conv"),
    "dtype": (lambda h, s, ls: h["conv.bias"].update(dtype="F31"), "dtype must be one of", None),
    "dtype lies": (lambda h, s, ls: h["conv.bias"].update(dtype="F64"), "does not fill data_offsets", None),
    "tensor field": (lambda h, s, ls: h["conv.bias"].update(x=1), "exactly dtype, shape and data_offsets", None),
    "tensor absurd": (lambda h, s, ls: h["conv.bias"].update(shape=[2**62, 4]), "possible size", None),
    "overlap": (move("conv.bias", -4, -4), "must begin where the one before ends", None),
    "gap": (move("conv.bias", 4, 4), "must begin where the one before ends", None),
    "negative": (move("conv.bias", -10**6, -10**6), "must be two positions", None),
    "beyond": (move("conv.bias", 10**6, 10**6), "must begin where the one before ends", None),
    "beyond 64 bits": (move("conv.bias", 2**64, 2**64), "must begin where the one before ends", None),
    "name twice": (twice, "'head.scale' appears twice", None),
    "header no JSON": (lambda h, s, ls: b"\xff\xfe", "header must be JSON", None),
    "header no object": (lambda h, s, ls: b"[1]", "header must be a JSON object", None),
    "header deep": (lambda h, s, ls: b"[" * 200_000, "header must be JSON", None),
    "huge number": (lambda h, s, ls: b'{"a": ' + b"9" * 10_000 + b"}", "header must be JSON", None),
}


@pytest.mark.parametrize("case", EDITS)
def test_headers_that_lie(tmp_path, good, case):
    edit, reason, layer = EDITS[case]
    error = refusal(tmp_path / "bad", edited(good, edit))
    assert error.layer == layer and re.search(reason, error.reason), error.reason


@pytest.mark.parametrize("size", [2**64 - 1, 2**63, 2**40, 100_000_001, 10**4])
def test_header_size_that_lies(tmp_path, good, size):
    error = refusal(tmp_path / "bad", size.to_bytes(8, "little") + good[8:])
    assert "its header must end within" in error.reason


@pytest.mark.parametrize("name, value, reason", [
    ("conv.scale", 0.0, "scale must be positive and finite, got 0.0 in channel 1"),
    ("conv.scale", -1.0, "scale must be positive and finite, got -1.0 in channel 1"),
    ("conv.scale", np.nan, "scale must be positive and finite, got nan in channel 1"),
    ("conv.scale", np.inf, "scale must be positive and finite, got inf in channel 1"),
    ("conv.scale", 3e38, "scale must be positive and finite, got inf in channel 1"),  # only once it is multiplied
    ("head.offset", np.nan, "offset must be finite"),
])
def test_values_that_cannot_be(tmp_path, good, name, value, reason):
    (tmp_path / "good").write_bytes(good)
    entry, data = mbq_store.open(tmp_path / "good").entry(name), bytearray(good)
    data[entry.begin + 4:entry.begin + 8] = np.float32(value).tobytes()
    error = refusal(tmp_path / "bad", data)
    assert error.reason == reason and error.layer == name.split(".")[0]


@pytest.mark.parametrize("bits, signed, code", [(4, True, 8), (4, True, -9), (7, False, 128), (1, True, 0)])
def test_codes_out_of_their_range(tmp_path, bits, signed, code):
    layer = stores.random_layer("w", (3, 5000), bits=bits, signed=signed, switchable=False)
    mbq_store.write(tmp_path / "s", [layer], rounding="half_even")
    data = bytearray((tmp_path / "s").read_bytes())
    data[-1] = code % 256  # the last of the codes, which lie at the end
    error = refusal(tmp_path / "bad", data)
    assert error.layer == "w" and f"codes of {bits} bits, got others" in error.reason


def mutated(data, rng):
    """The file with bytes changed, cut off, moved or repeated, or with its header's numbers and words changed."""
    data = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(len(data)):]
    elif kind == 2:
        header = int.from_bytes(data[:8], "little")
        place = 8 + rng.randrange(header)
        data[place:place + 1] = rng.choice([b"", *(bytes([byte]) for byte in b'09-"{},e\\\0[.')])
        data[:8] = (header + rng.choice([-1, 0, 1])).to_bytes(8, "little")
    elif kind == 3:
        begin = rng.randrange(len(data))
        end = min(len(data), begin + rng.randrange(64))
        data[begin:begin] = data[begin:end]
    else:
        header, body = stores.split(bytes(data))
        values = [header[name] for name in header if name != "__metadata__"]
        chosen = rng.choice(values)
        field = rng.choice(["shape", "data_offsets"])
        chosen[field] = [rng.choice([0, 1, -1, 2**31, 2**63, value, value + 1, value - 1, None, 1.5, "1", [value]])
                         for value in chosen[field]]
        data = bytearray(stores.join(header, body))
    return bytes(data)


@pytest.mark.parametrize("rounding, layout", [("half_up", "planes"), ("half_even", "codes")])
def test_ten_thousand_mutated_files(tmp_path, rounding, layout):
    """Success or StoreError, nothing else: half of the ten thousand here, half in the other case."""
    stores.small_store(tmp_path / "good", rounding=rounding, layout=layout)
    good, rng, path = (tmp_path / "good").read_bytes(), random.Random(layout), tmp_path / "mutated"
    refused = 0
    for _ in range(5000):
        path.write_bytes(mutated(good, rng))
        try:
            stores.read_everything(path)
        except StoreError:
            refused += 1
    assert 2500 < refused < 4950  # the mutations are neither harmless nor all alike


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


def test_import_needs_no_torch_and_no_other_room():
    script = """
import sys
for name in ("torch", "mbq_kernels", "mbq_train"):
    sys.modules[name] = None
import mbq_store
assert mbq_store.open and not any(name.startswith("torch") and sys.modules[name] for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(mbq_store.__file__).parents[1])


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
