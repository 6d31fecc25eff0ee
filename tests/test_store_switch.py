"""Switching a whole store to one bit-width, inspecting it, and the sizes of a real network. Runs without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import stores

import mbq_store


@pytest.fixture(params=[(rounding, layout) for rounding in stores.ROUNDINGS for layout in ("codes", "planes")],
                ids="-".join)
def store(tmp_path, request):
    rounding, layout = request.param
    stores.small_store(tmp_path / "s", rounding=rounding, layout=layout)
    return mbq_store.open(tmp_path / "s")


@pytest.mark.parametrize("bits, layout", [(8, "codes"), (7, "codes"), (5, "planes"), (4, "packed"), (3, "planes"),
                                          (2, "packed")])
def test_switched_store_holds_the_same_weights(store, tmp_path, bits, layout):
    mbq_store.switch(store.path, bits, tmp_path / "out")
    switched = mbq_store.open(tmp_path / "out")
    one = switched.layer("conv")
    assert (one.bits, one.layout, one.switchable) == (bits, layout, False)
    assert (one.shape, one.module) == ((3, 2, 3, 3), "Conv2d")
    assert one.bit_widths == (bits,) and switched.layer("head") == store.layer("head")
    for name in store.layers:
        at = bits if name == "conv" else 4
        np.testing.assert_array_equal(switched.codes(name), store.codes(name, at), strict=True)
        np.testing.assert_array_equal(switched.dequantize(name), store.dequantize(name, at), strict=True)
    assert switched.rest == store.rest and switched.rounding == store.rounding
    assert switched.trained_bits == store.trained_bits and switched.metadata == store.metadata
    for name in store.rest:
        np.testing.assert_array_equal(switched.tensor(name), store.tensor(name), strict=True)
        assert switched.entry(name).dtype == store.entry(name).dtype


def test_a_bit_width_for_every_layer_and_the_same_file(tmp_path):
    layers = [stores.random_layer(name, (3, 40), seed=seed) for seed, name in enumerate("ab")]
    mbq_store.write(tmp_path / "s", layers, rounding="half_even")
    expected = [mbq_store.open(tmp_path / "s").dequantize(name, bits) for name, bits in (("a", 4), ("b", 2))]
    mbq_store.switch(tmp_path / "s", {"a": 4, "b": 2}, tmp_path / "s")
    switched = mbq_store.open(tmp_path / "s")
    for name, weight in zip("ab", expected, strict=True):
        np.testing.assert_array_equal(switched.dequantize(name), weight)


@pytest.mark.parametrize("bits, error, message", [
    (9, ValueError, "switch: bits must be between 2 and 8, got 9"),
    (1, ValueError, "switch: bits must be between 2 and 8, got 1"),
    ("4", TypeError, "switch: bits must be an integer, got '4'"),
    ({"conv": 1}, ValueError, "switch: bits must be between 2 and 8, got 1"),
    ({"head": 4}, ValueError, "switch: bits must name every switchable layer and no other"),
    ({}, ValueError, "switch: bits must name every switchable layer and no other, got a difference in 'conv'"),
])
def test_errors_leave_no_file(store, tmp_path, bits, error, message):
    with pytest.raises(error, match=message):
        mbq_store.switch(store.path, bits, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_store_without_switchable_layers(tmp_path):
    layer = stores.random_layer("w", (2, 9), bits=4, switchable=False)
    mbq_store.write(tmp_path / "s", [layer], rounding="half_even")
    with pytest.raises(ValueError, match="switch: bits must be 4 for a store without switchable layers, got 2"):
        mbq_store.switch(tmp_path / "s", 2, tmp_path / "out")
    mbq_store.switch(tmp_path / "s", 4, tmp_path / "out")
    assert mbq_store.open(tmp_path / "out").layer("w").layout == "packed"


def test_bad_values_leave_the_old_file(tmp_path):
    """A scale that overflows at few bits is found while writing."""
    layer = mbq_store.LayerData("w", np.ones((2, 3), np.int8), np.float32([1e38]))
    mbq_store.write(tmp_path / "s", [layer], rounding="half_even")
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(mbq_store.StoreError, match="s: layer 'w': scale must be positive and finite, got inf"):
        mbq_store.switch(tmp_path / "s", 2, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


def test_inspect(store, tmp_path):
    found = json.loads(json.dumps(mbq_store.inspect(store.path)))
    conv, head = found["layers"]
    assert found["file_bytes"] == store.path.stat().st_size and found["rounding"] == store.rounding
    assert found["float32_bytes"] == 4 * (54 + 10 + 3 + 3) + 8  # all but the counter as float32
    assert (head["bits"], head["error"], head["switchable"]) == (4, {"4": 0.0}, False)
    assert list(conv["error"]) == ["8", "7", "6", "5", "4", "3", "2"] and conv["error"]["8"] == 0
    high = store.dequantize("conv").astype(np.float64)
    for bits in range(2, 8):
        wanted = ((store.dequantize("conv", bits) - high) ** 2).sum() / (high**2).sum()
        assert conv["error"][str(bits)] == pytest.approx(wanted, rel=1e-6) and wanted > 0
    for bits in range(2, 9):
        mbq_store.switch(store.path, bits, tmp_path / "out")
        switched = mbq_store.open(tmp_path / "out")
        names = [name for layer in switched.layers for name in switched.layer(layer).tensors()]
        assert found["bytes_at"][str(bits)] == sum(switched.entry(name).bytes for name in (*names, *switched.rest))


def test_inspect_zeros_and_nothing(tmp_path):
    layers = [mbq_store.LayerData("zero", np.zeros((2, 3), np.int8), np.float32([1])),
              mbq_store.LayerData("nothing", np.zeros((0, 3), np.int8), np.float32([1]))]
    mbq_store.write(tmp_path / "s", layers, rounding="half_even")
    for layer in mbq_store.inspect(tmp_path / "s")["layers"]:
        assert set(layer["error"].values()) == {0.0}
    assert mbq_store.inspect(tmp_path / "s")["bytes_at"][4] == 4 + 8


def test_summary(tmp_path):
    stores.small_store(tmp_path / "s")
    lines = mbq_store.open(tmp_path / "s").summary().splitlines()
    assert "rounding half_up, trained at 8, 4, 2 bits" in lines[0]
    assert lines[1] == "2 quantized layers; 3 other tensors of 26 bytes"
    assert [line.split() for line in lines[2:]] == [["layer", "shape", "bits", "layout", "bytes"],
                                                    ["conv", "3x2x3x3", "8..2", "planes", "84"],
                                                    ["head", "2x5", "4", "packed", "22"]]


def test_the_command_inspects(tmp_path):
    stores.small_store(tmp_path / "s")

    def inspect(name):
        command = [sys.executable, "-m", "mbq_store", "inspect", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr
    with mbq_store.open(tmp_path / "s") as store:
        assert inspect("s") == (0, store.summary() + "\n", "")
    status, out, errors = inspect("none")
    assert (status, out) == (1, "") and "cannot be read" in errors and len(errors.splitlines()) == 1


def resnet18(classes, quantized_ends):
    """ResNet-18's layers for `write`: quantized weights, the float rest."""
    convolutions = [("conv1", (64, 3, 7, 7))]
    inner = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            convolutions += [(f"layer{stage}.{block}.conv1", (width, inner, 3, 3)),
                             (f"layer{stage}.{block}.conv2", (width, width, 3, 3))]
            if width != inner:
                convolutions += [(f"layer{stage}.{block}.downsample.0", (width, inner, 1, 1))]
            inner = width
    ends = {"conv1", "fc"}
    weights = [*convolutions, ("fc", (classes, 512))]
    layers = [mbq_store.LayerData(name, np.ones(shape, np.int8), np.float32([1]), module="Conv2d")
              for name, shape in weights if quantized_ends or name not in ends]
    rest = {} if quantized_ends else {f"{name}.weight": np.ones(shape, np.float32) for name, shape in weights
                                      if name in ends}
    rest["fc.bias"] = np.ones(classes, np.float32)
    for name, shape in convolutions:
        for part in ("weight", "bias", "running_mean", "running_var"):
            rest[f"bn.{name}.{part}"] = np.ones(shape[0], np.float32)
        rest[f"bn.{name}.num_batches_tracked"] = np.array(1)
    return layers, rest


@pytest.mark.parametrize("classes, quantized_ends, stored, packed", [(10, True, 0.27, 0.15), (1000, False, 0.30, 0.18)])
def test_size_of_resnet18(tmp_path, classes, quantized_ends, stored, packed):
    """Files, headers included, as parts of the network's float32 weights."""
    mbq_store.write(tmp_path / "s", *resnet18(classes, quantized_ends), rounding="half_even", trained_bits=(8, 6, 4, 2))
    mbq_store.switch(tmp_path / "s", 4, tmp_path / "s4")
    as_float = mbq_store.inspect(tmp_path / "s")["float32_bytes"]
    assert 44e6 < as_float < 47e6
    assert (tmp_path / "s").stat().st_size <= stored * as_float
    assert (tmp_path / "s4").stat().st_size <= packed * as_float
