"""Files that are no stores, or no longer: StoreError that says why, never a crash. Runs without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import stores

import mbq_store
from mbq_store import StoreError


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


def test_import_needs_no_torch_and_no_other_room():
    script = """
import sys
for name in ("torch", "mbq_kernels", "mbq_train"):
    sys.modules[name] = None
import mbq_store
assert mbq_store.open and not any(name.startswith("torch") and sys.modules[name] for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(mbq_store.__file__).parents[1])
