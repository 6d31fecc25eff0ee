"""export_onnx: what is in the file, what it costs, what cannot be in one, and the command."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import one_thread, small_network  # noqa: F401
from onnx_files import images, run, trained
from torch import nn
from typer.testing import CliRunner

import mbq_lab
from mbq_lab.command.app import app
from mbq_train import convert, deploy, export_onnx, set_bits


def test_the_file_is_small_and_says_nothing_of_where_it_was_made(tmp_path):
    """Codes as bytes, and two a byte up to 4 bits; the same file every time."""
    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
                          nn.Linear(512, 3))
    as_float = sum(4 * parameter.numel() for parameter in model.parameters())
    model = trained(model, x := torch.rand(4, 8), quantizer="double-rounding")
    path = tmp_path / "file.onnx"
    for bits, share in ((8, 0.27), (4, 0.15), (2, 0.15)):
        export_onnx(model, path, bits=bits, example=x, metadata={"run": "seven"})
        data = path.read_bytes()
        assert len(data) <= share * as_float
        assert b".py" not in data and str(Path(__file__).parent).encode() not in data
        assert {p.key: p.value for p in onnx.load(path).metadata_props} == {"run": "seven", "mbq.bits": str(bits)}
        export_onnx(model, path, bits=bits, example=x, metadata={"run": "seven"})
        assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]


def test_weights_are_never_quantized_at_run_time(tmp_path):
    model = trained(small_network(), images())
    export_onnx(model, tmp_path / "file.onnx", bits=4, example=images())
    proto = onnx.load(tmp_path / "file.onnx")
    constants = {tensor.name for tensor in proto.graph.initializer}
    operators = [node.op_type for node in proto.graph.node]
    assert {node.domain for node in proto.graph.node} == {""} and proto.opset_import[0].version == 21
    assert [operators.count(name) for name in ("QuantizeLinear", "Clip", "Cast", "DequantizeLinear")] == [2, 2, 4, 0]
    assert not [n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants]
    assert proto.graph.output[0].name == "output" and proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_the_network_is_left_as_it_was(tmp_path):
    model = trained(small_network(), images()).train()
    set_bits(model, 2)
    before, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    export_onnx(model, tmp_path / "file.onnx", bits=8, example=images())
    assert model.training and model[3].weight_quantizer.bit_state.bits == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images()), twin(images()))


def test_corrected_weights_have_their_offset_in_the_file(tmp_path):
    model = trained(small_network(), x := images(), weight_correction=True)
    for bits in (8, 2):
        export_onnx(model, tmp_path / "file.onnx", bits=bits, example=x)
        set_bits(model, bits)
        want = model(x).detach()
        got, = run(tmp_path / "file.onnx", x)
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("change, error, message", [
    ({"model": small_network}, ValueError, "model must hold layers made by convert, not yet deployed, got Sequential"),
    ({"model": lambda: deploy(trained(small_network(), images(), quantizer="double-rounding"))}, ValueError,
     "model must hold layers made by convert, not yet deployed, got Sequential"),
    ({"model": lambda: trained(small_network(), images()).bfloat16(), "example": images().bfloat16()}, TypeError,
     r"model must be float32, got torch\.bfloat16 in 0\.weight"),
    ({"model": lambda: trained(small_network(), images(), quantizer="any-precision")}, ValueError,
     "quantizer must be learned, double-rounding or round-clamp, got any-precision"),
    ({"bits": 3}, ValueError, "bits must be one of 8, 4, 2, which were trained, got 3"),
    ({"bits": 32}, ValueError, "bits must be one of 8, 4, 2, which were trained, got 32"),
    ({"bits": True}, TypeError, "bits must be an integer, got True"),
    ({"bits": None}, TypeError, "bits must be an integer, got None"),
    ({"example": images(channels=2)}, ValueError, "example must be what Sequential can be called with, got an error"),
    ({"example": "image"}, TypeError, "example must be a tensor, a tuple of arguments or a dict"),
    ({"example": images()[:0]}, ValueError, "example must hold a batch of at least one, got none"),
    ({"metadata": {"a": 1}}, TypeError, "metadata must map strings to strings, got {'a': 1}"),
], ids=lambda value: value if isinstance(value, str) else "" if isinstance(value, type) else "/".join(value))
def test_what_cannot_be_exported_is_an_error(tmp_path, change, error, message):
    given = {"model": lambda: trained(small_network(), images()), "bits": 8, "example": images()} | change
    with pytest.raises(error, match=f"^export_onnx: {message}"):
        export_onnx(given.pop("model")(), tmp_path / "file.onnx", **given)
    assert not list(tmp_path.iterdir())


def test_scales_without_values_are_an_error_that_names_the_layer(tmp_path):
    with pytest.raises(RuntimeError, match="^3: ActivationQuantizer must have seen a training batch at 4 bits"):
        export_onnx(convert(small_network(), (8, 4)), tmp_path / "file.onnx", bits=4, example=images())


def test_missing_packages_large_files_and_full_disks(tmp_path, monkeypatch):
    from mbq_train.export import onnx as module

    model, path = trained(small_network(), images()), tmp_path / "file.onnx"
    path.write_text("old")

    def refused(error, message):
        with pytest.raises(error, match=message):
            export_onnx(model, path, bits=8, example=images())
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_LARGEST", 500)
        refused(ValueError, "model must fit into a file of 2 GiB")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        refused(OSError, "No space left")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    refused(ImportError, r"package onnxscript must be installed, got none: pip install 'mbq-kernels\[onnx\]'")


def test_the_command(tmp_path):
    def mbq(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    path = tmp_path / "four.onnx"
    mbq("train", "--epochs", 1, "--float-epochs", 1, "--batch-size", 256, "--bits", "8,4", "--out", tmp_path / "run")
    done = mbq("export", tmp_path / "run", "--onnx", path, "--bits", 4)
    assert done.exit_code == 0 and "written: " in done.output, done.output
    x = images(5)
    model = mbq_lab.load_quantized(tmp_path / "run")
    set_bits(model, 4)
    np.testing.assert_allclose(run(path, x)[0], model(x).detach(), rtol=0, atol=1e-4)
    assert mbq("export", tmp_path / "run", "--onnx", path, "--bits", 8, "--batch", 3).exit_code == 0
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    for arguments, message in (((), "--store or --onnx must name a file to write"),
                               (("--onnx", path), "--onnx needs --bits, one of 8, 4")):
        done = mbq("export", tmp_path / "run", *arguments)
        assert done.exit_code == 2 and message in done.output
    before, store = path.read_bytes(), tmp_path / "four.safetensors"
    for other, bits in ((path, 0), (tmp_path / "no/four.onnx", 4), (store, 4)):  # both or none
        done = mbq("export", tmp_path / "run", "--store", store, "--onnx", other, "--bits", bits)
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["four.onnx", "run"] and path.read_bytes() == before
    assert mbq("export", tmp_path / "run", "--store", store, "--onnx", path, "--bits", 4).exit_code == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["four.onnx", "four.safetensors", "run"]
